package ca

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
)

// jwt has the shape of a JWT with the given payload.
func jwt(payload string) string {
	return "eyJh." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestR15_BearerToken(t *testing.T) {
	for _, row := range []struct {
		name   string
		values []string
		token  string
		want   *kind
	}{
		{"as agents send it", []string{"Bearer a.b.c"}, "a.b.c", nil},
		{"with space around, as ztunnel sends it", []string{"Bearer  a.b.c\n"}, "a.b.c", nil},
		{"behind another scheme", []string{"Basic eDp5", "Bearer a.b.c"}, "a.b.c", nil},
		{"the first counts", []string{"Bearer a.b.c", "Bearer d.e.f"}, "a.b.c", nil},
		{"none", nil, "", &kindNoToken},
		{"another scheme only", []string{"Basic eDp5"}, "", &kindNoToken},
		{"lower case", []string{"bearer a.b.c"}, "", &kindNoToken},
		{"no space", []string{"Bearera.b.c"}, "", &kindNoToken},
		{"space in front", []string{" Bearer a.b.c"}, "", &kindNoToken},
		{"empty value", []string{""}, "", &kindNoToken},
		{"empty token", []string{"Bearer "}, "", &kindTokenShape},
		{"opaque token", []string{"Bearer secret"}, "", &kindTokenShape},
		{"the first is bad", []string{"Bearer x", "Bearer a.b.c"}, "", &kindTokenShape},
		{"two in one", []string{"Bearer a.b.c d.e.f"}, "", &kindTokenShape},
	} {
		t.Run(row.name, func(t *testing.T) {
			md := metadata.MD{}
			if row.values != nil {
				md["authorization"] = row.values
			}
			token, err := bearerToken(md)
			if row.want != nil {
				requireKind(t, *row.want, err)
				assert.Empty(t, token)
				assert.NotContains(t, err.Error(), "secret", "no token in a log")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.token, token)
		})
	}
}

func TestShapedLikeJWT(t *testing.T) {
	for token, want := range map[string]bool{
		"a.b.c":            true,
		"eyJh-_.AZaz09.x":  true,
		jwt(`{"iss":"x"}`): true,
		"":                 false,
		"a":                false,
		"a.b":              false,
		"a.b.c.d":          false,
		"..":               false,
		"a..c":             false,
		".b.c":             false,
		"a.b.":             false,
		"a.b.c=":           false,
		"a.b+/.c":          false,
		"a.b.c\x00":        false,
		"a.b.\u00e4":       false,
		"a. .c":            false,
		"a.b." + strings.Repeat("c", maxTokenBytes-4): true,
		"a.b." + strings.Repeat("c", maxTokenBytes-3): false,
	} {
		assert.Equal(t, want, shapedLikeJWT(token), "%.40q", token)
	}
}

func TestR18_ClusterID(t *testing.T) {
	for want, values := range map[string][][]string{
		"":           {nil, {""}, {"one", "two"}, {"one", "one"}},
		"Kubernetes": {{"Kubernetes"}},
		" ":          {{" "}},
	} {
		for _, v := range values {
			assert.Equal(t, want, clusterID(metadata.MD{"clusterid": v}), "%q", v)
		}
	}
	assert.Empty(t, clusterID(nil))
}

func TestCallerKey(t *testing.T) {
	bound := Caller{ServiceAccountUID: "sa", PodUID: "pod", CredentialID: "one"}
	assert.Equal(t, "pod::pod", bound.key())
	free := Caller{ServiceAccountUID: "sa", CredentialID: "one"}
	other := Caller{ServiceAccountUID: "sa", CredentialID: "two"}
	assert.NotEqual(t, free.key(), other.key(), "tokens that are bound to no pod count by themselves")
	assert.NotEqual(t, free.key(), bound.key())
}

func TestTokenExpiry(t *testing.T) {
	for _, row := range []struct {
		name, token string
		want        int64 // seconds since 1970
		problem     string
	}{
		{"seconds", jwt(`{"exp":1893456000}`), 1893456000, ""},
		{"with a fraction, the earlier second", jwt(`{"exp":1893456000.9}`), 1893456000, ""},
		{"with an exponent", jwt(`{"exp":1.893456e9}`), 1893456000, ""},
		{"1970", jwt(`{"exp":0}`), 0, ""},
		{"none", jwt(`{}`), 0, "the token has no expiry"},
		{"null", jwt(`{"exp":null}`), 0, "the token has no expiry"},
		{"negative", jwt(`{"exp":-1}`), 0, "token expires at -1"},
		{"beyond all time", jwt(`{"exp":1e300}`), 0, "token expires at 1e+300"},
		{"more than a number holds", jwt(`{"exp":1e999}`), 0, "decode token payload: "},
		{"text", jwt(`{"exp":"1893456000"}`), 0, "decode token payload: "},
		{"no JSON", jwt(`x`), 0, "decode token payload: "},
		{"a list", jwt(`[]`), 0, "decode token payload: "},
		{"no base64", "a.b.c", 0, "decode token payload: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			require.True(t, shapedLikeJWT(row.token))
			expiry, err := tokenExpiry(row.token)
			if row.problem != "" {
				require.ErrorContains(t, err, row.problem)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, expiry.Unix())
		})
	}
}

func TestCacheTime(t *testing.T) {
	now := time.Unix(1893456000, 0)
	for _, row := range []struct {
		name, token string
		want        time.Duration
	}{
		{"much is left", jwt(`{"exp":1893499200}`), 10 * time.Second},
		{"less is left than is cached", jwt(`{"exp":1893456004}`), 4 * time.Second},
		{"at its expiry", jwt(`{"exp":1893456000}`), 0},
		{"expired", jwt(`{"exp":1893455999}`), -time.Second},
		{"never expires", jwt(`{}`), 10 * time.Second},
		{"can't be read", jwt(`x`), 0},
		{"expires at no time", jwt(`{"exp":1e300}`), 0},
	} {
		assert.Equal(t, row.want, cacheTime(row.token, 10*time.Second, now), row.name)
	}
}

// FuzzTokenHeader: whatever the header holds, what is taken for a token has its shape, and reading its
// claims doesn't panic nor keep it for longer than allowed.
func FuzzTokenHeader(f *testing.F) {
	for _, seed := range []string{"", "Bearer ", "Bearer a.b.c", "Bearer " + jwt(`{"exp":1893456000}`), "Bearer " + jwt(`{"exp":-1e308}`), "Basic x", "Bearer a..c", "Bearer  a.b.c \n"} {
		f.Add(seed, "Bearer x.y.z")
	}
	now := time.Unix(1893456000, 0)
	f.Fuzz(func(t *testing.T, first, second string) {
		token, err := bearerToken(metadata.MD{"authorization": []string{first, second}})
		if err != nil {
			requireOneOf(t, err, kindNoToken, kindTokenShape)
			require.Empty(t, token)
			return
		}
		require.Equal(t, 2, strings.Count(token, "."))
		require.LessOrEqual(t, len(token), maxTokenBytes)
		require.NotContains(t, token, " ")
		require.True(t, strings.Contains(first, token) || strings.Contains(second, token))
		require.LessOrEqual(t, cacheTime(token, time.Minute, now), time.Minute)
		if expiry, err := tokenExpiry(token); err == nil {
			require.False(t, expiry.Before(time.Unix(0, 0)))
			require.False(t, now.Add(cacheTime(token, time.Minute, now)).After(expiry), "never past its own expiry")
		}
	})
}
