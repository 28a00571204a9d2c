package issuer

import (
	"errors"
	"reflect"

	"k8s.io/apimachinery/pkg/watch"
)

// neverOpened is the stream that client-go returns, with no error, where the API server hangs up or isn't reached in time.
var neverOpened = reflect.TypeOf(watch.NewEmptyWatch())

var errNeverOpened = errors.New("watch: the API server hung up, or wasn't reached in time")

// opened is why a watch failed that returned stream and err, nil where it didn't.
func opened(stream watch.Interface, err error) error {
	if reflect.TypeOf(stream) == neverOpened {
		return errNeverOpened
	}
	return err
}
