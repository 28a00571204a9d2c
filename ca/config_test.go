package ca

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/setting"
)

func TestR33_Lifetime(t *testing.T) {
	const hour, day = 3600, 86400
	d := setting.DurationOf
	narrow := LifetimeConfig{Default: d(time.Hour), Max: d(2 * time.Hour), Min: d(10 * time.Minute)}
	for _, row := range []struct {
		name    string
		cfg     LifetimeConfig
		seconds int64
		want    time.Duration // 0 is refused
	}{
		{"none", LifetimeConfig{}, 0, 24 * time.Hour},
		{"negative", LifetimeConfig{}, -1, 24 * time.Hour},
		{"as negative as can be", LifetimeConfig{}, math.MinInt64, 24 * time.Hour},
		{"as Istio asks", LifetimeConfig{}, day, 24 * time.Hour},
		{"a second less", LifetimeConfig{}, day - 1, 24*time.Hour - time.Second},
		{"a second more", LifetimeConfig{}, day + 1, 24 * time.Hour},
		{"a week", LifetimeConfig{}, 7 * day, 24 * time.Hour},
		{"the floor", LifetimeConfig{}, 60, time.Minute},
		{"below the floor", LifetimeConfig{}, 59, 0},
		{"a second", LifetimeConfig{}, 1, 0},
		{"as much as can be", LifetimeConfig{}, math.MaxInt64, 24 * time.Hour},
		{"nanoseconds overflow to below the floor", LifetimeConfig{}, math.MaxInt64/int64(time.Second) + 1, 24 * time.Hour},
		{"nanoseconds overflow to 1s", LifetimeConfig{}, 18446744074, 24 * time.Hour},
		{"configured default", narrow, 0, time.Hour},
		{"configured cap", narrow, day, 2 * time.Hour},
		{"configured floor", narrow, 600, 10 * time.Minute},
		{"below the configured floor", narrow, 599, 0},
		{"between", narrow, hour + 1, time.Hour + time.Second},
		{"a low cap bounds the default", LifetimeConfig{Max: d(time.Hour)}, 0, time.Hour},
		{"a cap below a minute bounds the floor", LifetimeConfig{Max: d(30 * time.Second)}, 30, 30 * time.Second},
		{"a high cap leaves the default", LifetimeConfig{Max: d(90 * 24 * time.Hour)}, 0, 24 * time.Hour},
		{"a high cap is granted", LifetimeConfig{Max: d(90 * 24 * time.Hour)}, 90 * day, 90 * 24 * time.Hour},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.cfg.grant(row.seconds)
			if row.want == 0 {
				requireKind(t, kindLifetime, err)
				assert.Contains(t, status.Convert(err).Message(), "the least is "+row.cfg.withDefaults().Min.Or(0).String(), "it names the floor")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, got)
		})
	}
}

func TestConfigValidate(t *testing.T) {
	d := setting.DurationOf
	for _, row := range []struct {
		name string
		cfg  Config
		want string // "" is right
	}{
		{"defaults", Config{}, ""},
		{"all keys", Config{Keys: []string{"RSA", "ECDSA-P256", "ECDSA-P384", "Ed25519"}}, ""},
		{"key", Config{Keys: []string{"RSA", "rsa"}}, `ca.keys: "rsa" is no kind of key; they are RSA, ECDSA-P256, ECDSA-P384, Ed25519`},
		{"request timeout", Config{RequestTimeout: d(time.Hour)}, "ca.requestTimeout: 1h0m0s is out of range; it must be between 1s and 5m0s"},
		{"default above the cap", Config{Lifetime: LifetimeConfig{Default: d(48 * time.Hour)}}, "ca.lifetime.default: 48h0m0s is above max, 24h0m0s; it must not be"},
		{"floor above the default", Config{Lifetime: LifetimeConfig{Min: d(48 * time.Hour)}}, "ca.lifetime.min: 48h0m0s is above default, 24h0m0s; it must not be"},
		{"cap below the floor", Config{Lifetime: LifetimeConfig{Max: d(time.Second), Min: d(time.Minute)}}, "ca.lifetime.min: 1m0s is above default, 1s; it must not be"},
		{"lifetime too short", Config{Lifetime: LifetimeConfig{Max: d(time.Millisecond)}}, "ca.lifetime.max: 1ms is out of range"},
		{"audience", Config{Token: TokenConfig{Audiences: []string{"a", ""}}}, "ca.token.audiences: an audience is empty; leave the list out for istio-ca"},
		{"cache", Config{Token: TokenConfig{CacheAccepted: d(time.Hour)}}, "ca.token.cacheAccepted: 1h0m0s is out of range; it must be between 1ms and 1m0s"},
		{"cache of the rejected", Config{Token: TokenConfig{CacheRejected: d(2 * time.Second)}}, "ca.token.cacheRejected: 2s is out of range; it must be between 1ms and 1s"},
		{"cache entries", Config{Token: TokenConfig{CacheEntries: -1}}, "ca.token.cacheEntries: -1 is out of range"},
		{"review timeout", Config{Token: TokenConfig{ReviewTimeout: d(time.Minute)}}, "ca.token.reviewTimeout: 1m0s is out of range"},
		{"reviews", Config{Token: TokenConfig{Reviews: 1001}}, "ca.token.reviews: 1001 is out of range; it must be between 1 and 1000"},
		{"reviews of an address", Config{Token: TokenConfig{ReviewsPerAddress: 1001}}, "ca.token.reviewsPerAddress: 1001 is out of range"},
		{"in flight", Config{Admission: AdmissionConfig{InFlight: -5}}, "ca.admission.inFlight: -5 is out of range; it must be between 1 and 10000"},
		{"in flight of a caller", Config{Admission: AdmissionConfig{InFlightPerCaller: 10_001}}, "ca.admission.inFlightPerCaller: 10001 is out of range"},
		{"queue time", Config{Admission: AdmissionConfig{QueueTime: d(time.Hour)}}, "ca.admission.queueTime: 1h0m0s is out of range"},
		{"queue length", Config{Admission: AdmissionConfig{QueueLength: 2_000_000}}, "ca.admission.queueLength: 2000000 is out of range"},
		{"budget of a caller", Config{Admission: AdmissionConfig{PerCallerPerMinute: -1}}, "ca.admission.perCallerPerMinute: -1 is out of range"},
		{"budget of a namespace", Config{Admission: AdmissionConfig{PerNamespacePerMinute: -1}}, "ca.admission.perNamespacePerMinute: -1 is out of range"},
		{"connections", Config{Admission: AdmissionConfig{Connections: -1}}, "ca.admission.connections: -1 is out of range"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("ca"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.ErrorContains(t, p.Err(), row.want)
			}
		})
	}
}
