package issuer

import "context"

// Source gives some of the mesh's trust anchors.
type Source interface {
	// String names the source for people and is the same for all replicas: "file /etc/roots/ca.crt".
	String() string
	// Run keeps the anchors current until ctx ends, and tells update each new answer and each error: at
	// least once, from one goroutine. After an error the last good answer stays in force.
	Run(ctx context.Context, update func(Bundle, error))
}
