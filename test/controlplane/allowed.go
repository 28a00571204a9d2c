package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// allowedTimeout is how long the API server may take to learn of a right.
const allowedTimeout = 2 * time.Minute

// Access is something that somebody may do.
type Access struct {
	User        string // such as system:serviceaccount:shop:cart
	Groups      []string
	Verb        string
	Group       string // of the API
	Resource    string
	Name        string // "" for all
	Namespace   string // "" for all, and for what is in none
	Subresource string
}

// AwaitAllowed waits until the API server goes by rights that were just granted: its authorizer learns of roles and
// bindings a moment after they are written, of each kind in their order.
func (p *Plane) AwaitAllowed(ctx context.Context, all ...Access) error {
	for _, a := range all {
		err := poll(ctx, allowedTimeout, func(ctx context.Context) error {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User: a.User, Groups: a.Groups,
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: a.Verb, Group: a.Group, Resource: a.Resource, Subresource: a.Subresource, Name: a.Name, Namespace: a.Namespace,
				},
			}}
			if err := p.client.Create(ctx, review); err != nil {
				return err
			}
			if !review.Status.Allowed {
				return errors.New("it isn't allowed")
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait until %s may %s %s.%s: %w", a.User, a.Verb, a.Resource, a.Group, err)
		}
	}
	return nil
}
