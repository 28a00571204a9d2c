package api

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
)

// reviews asks the API server who callers are and what they may see. At most reviewsAtOnce questions of each kind are
// under way. Safe for concurrent use.
type reviews struct {
	timeout time.Duration
	tokens  authenticationclient.TokenReviewInterface
	rights  authorizationclient.SubjectAccessReviewInterface
	count   *prometheus.CounterVec // by kind and result

	tokenSlots, rightSlots chan struct{}
}

// reviewsAtOnce is less than what signing has under way, so that inspection doesn't push it aside.
const reviewsAtOnce = 16

func newReviews(config *rest.Config, timeout time.Duration) (*reviews, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // what is sent at once is bounded instead
	authentication, err := authenticationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for TokenReviews: %w", err)
	}
	authorization, err := authorizationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for SubjectAccessReviews: %w", err)
	}
	return &reviews{
		timeout:    timeout,
		tokens:     authentication.TokenReviews(),
		rights:     authorization.SubjectAccessReviews(),
		tokenSlots: make(chan struct{}, reviewsAtOnce),
		rightSlots: make(chan struct{}, reviewsAtOnce),
	}, nil
}

// token asks whose a token is. Audiences nil are those of the API server.
func (r *reviews) token(ctx context.Context, token string, audiences []string) (*authenticationv1.TokenReviewStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	leave, err := enter(ctx, r.tokenSlots)
	if err != nil {
		return nil, fmt.Errorf("wait to create TokenReview: %w", err)
	}
	defer leave()
	review, err := r.tokens.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
	r.counted("token", err, err == nil && review.Status.Authenticated)
	if err != nil {
		return nil, fmt.Errorf("create TokenReview: %w", err)
	}
	return &review.Status, nil
}

// access asks whether something is allowed.
func (r *reviews) access(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	leave, err := enter(ctx, r.rightSlots)
	if err != nil {
		return false, fmt.Errorf("wait to create SubjectAccessReview: %w", err)
	}
	defer leave()
	review, err := r.rights.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	allowed := err == nil && review.Status.Allowed && !review.Status.Denied
	r.counted("access", err, allowed)
	if err != nil {
		return false, fmt.Errorf("create SubjectAccessReview: %w", err)
	}
	return allowed, nil
}

func (r *reviews) counted(kind string, err error, yes bool) {
	result := "no"
	switch {
	case err != nil:
		result = "error"
	case yes:
		result = "yes"
	}
	r.count.WithLabelValues(kind, result).Inc()
}

// enter waits for a place, which is to be left.
func enter(ctx context.Context, places chan struct{}) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
