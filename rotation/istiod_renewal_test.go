package rotation

import (
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Istiod's certificate is due when cert-manager is going to renew it, whatever istiod.renewBefore is.
func TestIstiodIsDueWhenItIsRenewed(t *testing.T) {
	begin := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	end := begin.Add(24 * time.Hour)
	for _, row := range []struct {
		name         string
		renewal      *metav1.Time
		due, overdue time.Duration // after begin
	}{
		{"cert-manager doesn't say", nil, 16 * time.Hour, 20 * time.Hour},
		{"a third before the end", &metav1.Time{Time: begin.Add(16 * time.Hour)}, 16 * time.Hour, 20 * time.Hour},
		{"two hours before the end", &metav1.Time{Time: end.Add(-2 * time.Hour)}, 22 * time.Hour, 23 * time.Hour},
		{"soon", &metav1.Time{Time: begin.Add(2 * time.Hour)}, 2 * time.Hour, 13 * time.Hour},
		{"at once, which is of the certificate before", &metav1.Time{Time: begin}, 16 * time.Hour, 20 * time.Hour},
		{"at the end", &metav1.Time{Time: end}, 16 * time.Hour, 20 * time.Hour},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &cmapi.Certificate{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod-dynamic"}}
			assert.Empty(t, statusOf(c).subjects(), "there is none yet")
			c.Status = cmapi.CertificateStatus{NotBefore: &metav1.Time{Time: begin}, NotAfter: &metav1.Time{Time: end}, RenewalTime: row.renewal}
			subjects := statusOf(c).subjects()
			require.Len(t, subjects, 1)
			s := &subjects[0]
			assert.Equal(t, "istio-system/istiod-dynamic", s.Key)
			for at, want := range map[time.Duration]State{
				row.due - time.Second: Fresh, row.due + time.Second: Due,
				row.overdue - time.Second: Due, row.overdue + time.Second: Overdue, 24*time.Hour + time.Second: Expired,
			} {
				assert.Equal(t, want, Decide(s.policy(), s.NotBefore, s.NotAfter, begin.Add(at)), "after %s", at)
			}
		})
	}
}

// The watch goes by it as well.
func TestExpiryGoesByTheRenewal(t *testing.T) {
	now := time.Now()
	subject := Subject{Kind: KindIstiod, Key: "late", NotBefore: now.Add(-23 * time.Hour), NotAfter: now.Add(time.Hour), Renewal: now.Add(30 * time.Minute)}
	e := &Expiry{sources: []func() []Subject{func() []Subject { return []Subject{subject} }}}
	require.Len(t, e.Subjects(), 1)
	assert.Equal(t, Fresh, e.Subjects()[0].State)
	subject.Renewal = time.Time{}
	assert.Equal(t, Overdue, e.Subjects()[0].State)
}
