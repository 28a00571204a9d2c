package issuer

import (
	"context"
	"fmt"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Condition is what is known of an issuer itself.
type Condition struct {
	// State is one of Ready, NotReady, Missing and Unknown (an external issuer can't be looked up).
	State string
	// Reason is for people: why the state is what it is.
	Reason string
}

// States of an issuer.
const (
	StateReady    = "Ready"
	StateNotReady = "NotReady"
	StateMissing  = "Missing"
	StateUnknown  = "Unknown"
)

// Lookup reads the issuer's own Ready condition. An Issuer is looked for in namespace.
func Lookup(ctx context.Context, reader client.Reader, namespace string, ref Ref) Condition {
	if ref.Group != CertManagerGroup {
		return Condition{StateUnknown, "external issuers of group " + ref.Group + " can't be looked up"}
	}
	var object cmapi.GenericIssuer = &cmapi.Issuer{}
	name := types.NamespacedName{Namespace: namespace, Name: ref.Name}
	if ref.Kind == "ClusterIssuer" {
		object, name.Namespace = &cmapi.ClusterIssuer{}, ""
	}
	if err := reader.Get(ctx, name, object); apierrors.IsNotFound(err) {
		return Condition{StateMissing, fmt.Sprintf("%s %s doesn't exist", ref.Kind, name)}
	} else if err != nil {
		return Condition{StateUnknown, fmt.Sprintf("get %s %s: %v", ref.Kind, name, err)}
	}
	for _, c := range object.GetStatus().Conditions {
		if c.Type == cmapi.IssuerConditionReady {
			if c.Status == cmmeta.ConditionTrue {
				return Condition{StateReady, c.Message}
			}
			return Condition{StateNotReady, c.Reason + ": " + c.Message}
		}
	}
	return Condition{StateNotReady, "the issuer has no Ready condition yet"}
}
