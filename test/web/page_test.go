package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// refused is what the browser says of an answer that a test brings about.
const (
	refused401 = "status of 401"
	refused403 = "status of 403"
	refused404 = "status of 404"
)

// TestSayWhoYouAre: who shows no token, or a wrong one, is told what is missing and how to get it; a good one is kept for
// this tab only.
func TestSayWhoYouAre(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.says("Sign in", "Say who you are: with a bearer token for audience signet.dev", "signetctl dashboard", "kubectl create token", "--audience signet.dev")
	assert.Equal(t, "textbox", eval[string](b, `document.getElementById('token').computedRole`))
	b.picture("sign-in")

	b.tabTo("Token")
	b.press("no.such.token" + kb.Enter)
	b.says("The token is not accepted")
	assert.Empty(t, eval[string](b, `document.getElementById('token').value`))

	b.click("button", "Sign out")
	b.says("Sign in")
	eval[struct{}](b, `document.getElementById('token').value = `+quote(shown.tokens["operator"]))
	b.tabTo("Token")
	b.press(kb.Enter)
	b.says("5 services need attention")
	assert.Equal(t, "Services · Signet", eval[string](b, `document.title`))
	for _, where := range []string{`document.cookie`, `location.href`, `JSON.stringify({...localStorage})`, `document.documentElement.outerHTML`} {
		assert.NotContains(t, eval[string](b, where), shown.tokens["operator"], where)
	}
	b.goTo(shown.url) // a reload keeps it
	b.says("5 services need attention")

	b.click("button", "Sign out")
	b.says("Sign in")
	b.silent("services need attention")
	assert.Zero(t, eval[int](b, `sessionStorage.length`))
}

// TestBehindAProxy: where a proxy shows the credentials, as signetctl dashboard does, nobody is asked for a token; also
// below a path of its own.
func TestBehindAProxy(t *testing.T) {
	roots := x509.NewCertPool()
	roots.AddCert(shown.root.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	at, err := url.Parse(shown.url)
	require.NoError(t, err)
	at.Path = ""
	proxy := httptest.NewServer(http.StripPrefix("/signet", &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(at) },
		Transport:     authorized{shown.tokens["operator"], transport},
		FlushInterval: -1,
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(proxy.CloseClientConnections) // a watch goes on otherwise

	b := newTab(t, proxy.URL+"/signet/ui")
	b.says("5 services need attention")
	assert.False(t, eval[bool](b, `document.getElementById('forget').checkVisibility()`))
	b.view("#/issuances")
	b.says("Following")
	b.view("#/identities/" + url.PathEscape("spiffe://cluster.local/ns/shop/sa/cart"))
	b.says("spiffe://cluster.local/ns/shop/sa/cart", "cart-7d9f0")
}

// TestServices: what needs somebody comes first, the worst at the top; then all services in pages, to be searched.
func TestServices(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/services")
	b.says("5 services need attention")
	cases := eval[[]string](b, `[...document.querySelectorAll('.cases > li')].map((e) => e.innerText.replace(/\s+/g, ' '))`)
	require.Len(t, cases, 5)
	for n, want := range [][]string{
		{"payments/invoices", "Expired", "1 of 1 pods hold one that has expired: invoices-7d9f0"},
		{"payments/ledger", "No certificate", "2 of 2 pods hold no certificate: ledger-7d9f0, ledger-7d9f1"},
		{"payments/refunds", "Unexpected names"},
		{"shop/checkout", "Overdue", "1 of 3 pods should have renewed theirs: checkout-7d9f0"},
		{"payments/reports", "Several chains"},
	} {
		for _, text := range want {
			assert.Contains(t, cases[n], text)
		}
	}
	b.picture("services-light")
	b.media("prefers-color-scheme", "dark")
	b.picture("services-dark")
	b.media()

	// The table, as it is read and as it is said.
	b.says("100 services; more follow.")
	assert.Equal(t, []string{"Service", "Identities", "Pods", "First end", "Problems"}, eval[[]string](b, `[...document.querySelectorAll('main table [role=columnheader]')].map((e) => e.innerText)`))
	rows := `[...document.querySelectorAll('main tbody tr')]`
	assert.Equal(t, 100, eval[int](b, rows+`.length`))
	row := func(name string) string {
		b.t.Helper()
		at := rows + `.find((e) => e.firstChild.innerText === ` + quote(name) + `)`
		b.until(at)
		return eval[string](b, at+`.innerText.replace(/\s+/g, ' ')`)
	}
	assert.Contains(t, row("payments/api"), "3 fresh in 22 h")
	assert.Contains(t, row("shop/catalog"), "2 due in 1 d 2")
	assert.Contains(t, row("shop/checkout"), "2 fresh, 1 overdue in 5 h")
	assert.Contains(t, row("payments/ledger"), "2 missing – No certificate")
	assert.Contains(t, row("payments/invoices"), "1 expired 1 h")
	assert.Contains(t, row("shop/legacy"), "1 not in the mesh")
	meter := rows + `.find((e) => e.firstChild.innerText === 'shop/checkout').querySelector('[role=meter]')`
	assert.Equal(t, "Part of its life that is left", eval[string](b, meter+`.computedName`))
	assert.Regexp(t, "^2[345] %$", eval[string](b, meter+`.getAttribute('aria-valuetext')`))
	// The bar is as long as it says, once it doesn't grow any more.
	b.until(`Math.abs(parseFloat(getComputedStyle(` + meter + `, '::before').width) / ` + meter + `.clientWidth - 0.24) <= 0.02`)

	// Pages.
	b.click("button", "Next page")
	b.says("100 services on page 2; more follow.", "shelf-100")
	assert.Equal(t, 100, eval[int](b, rows+`.length`))
	b.until(`document.activeElement.computedName === 'All services'`)
	b.click("button", "Previous page")
	b.says("payments/api")
	for page := 2; page <= 6; page++ {
		b.click("button", "Next page")
		b.says(fmt.Sprintf("on page %d", page))
	}
	b.says("30 services on page 6.", "shelf-518")
	assert.True(t, eval[bool](b, find("button", "Next page")+`.disabled`))

	// The search goes through all pages.
	b.type_("Name or identity has", "shelf-51")
	b.says("9 of 530 services looked through match.")
	assert.Equal(t, 9, eval[int](b, rows+`.length`))
	assert.Equal(t, "9 of 530 services looked through match.", eval[string](b, `document.querySelector('[role=status].unseen').textContent`), "it is said")
	assert.Contains(t, eval[string](b, `location.hash`), "q=shelf-51")
	b.type_("Name or identity has", "sa/CHECKOUT")
	b.says("1 of 530 services looked through matches.")
	b.type_("Name or identity has", "nothing like this")
	b.says("No service matches.")
	b.type_("Name or identity has", "")
	b.type_("In namespace", "shop")
	b.says("5 services in shop.")
	b.click("checkbox", "Only with problems")
	b.says("1 service with problems in shop.")
	b.goTo("about:blank")
	b.goTo(shown.url + "#/services?q=catalog&namespace=shop")
	b.says("1 of 5 services looked through matches.", "shop/catalog")
}

// TestService: a service's page has its pods, their certificates with all names, and leads to each of them. Names are
// shown as they are.
func TestService(t *testing.T) {
	b := newTab(t, shown.url, refused401, refused404, "status of 422")
	b.signIn("operator", "#/services/shop/checkout")
	b.says("1 of 3 pods should have renewed theirs: checkout-7d9f0")
	b.until(find("table", "Pods behind the service and the certificates that they hold"))
	rows := eval[[]string](b, `[...document.querySelectorAll('main tbody tr')].map((e) => e.innerText.replace(/\s+/g, ' '))`)
	require.Len(t, rows, 3)
	for _, text := range []string{"checkout-7d9f0", "account checkout, node node-a", "Sidecar", "Overdue", "ends in 5 h", "URI:spiffe://cluster.local/ns/shop/sa/checkout", "Issuer.cert-manager.io/mesh", "CN=mesh root 2026"} {
		assert.Contains(t, rows[0], text, "what has a problem is the first")
	}
	b.picture("service")

	b.view("#/services/payments/refunds")
	b.says("DNS:" + markup)
	assert.Equal(t, []string{"URI:" + shown.odd.Identity, "DNS:" + markup + " unexpected"}, eval[[]string](b, `[...document.querySelectorAll('main table .names li')].map((e) => e.innerText)`))
	b.picture("service-odd")
	b.view("#/services/payments/reports")
	b.says("CN=mesh root 2027 ")
	b.view("#/services/payments/ledger")
	b.says("2 of 2 pods hold no certificate", "and holds no certificate")

	// What it really serves is asked for by hand.
	b.click("button", "Probe now")
	b.says("Alarm", "it is in no record "+markup, "not asked for", "10.0.0.1:8080, sidecar")
	b.says("1 answer from 2 pods behind the service.")
	b.picture("probe")

	// To a certificate and its identity.
	b.view("#/services/payments/refunds")
	b.says("DNS:" + markup)
	eval[struct{}](b, `document.querySelector('main a[href^="#/certificates/"]').click()`)
	b.says("In use", "DNS:"+markup, "1 d; 1 d asked for", "ECDSA, 256 bits, signed with ECDSA-SHA256", "-----BEGIN CERTIFICATE-----", shown.odd.SHA256, shown.odd.SPKISHA256, "refunds-7d9f0 on node node-a")
	assert.Contains(t, eval[string](b, `document.querySelector('main').textContent`), shown.odd.SerialNumber)
	assert.Equal(t, shown.odd.DER, pemOf(t, eval[string](b, `document.querySelector('pre').textContent`)))
	b.picture("certificate")
	b.click("link", shown.odd.Identity)
	b.says("payments/refunds", "all certificates that are known")
	b.click("link", "all certificates that are known")
	b.says("1 certificate.")

	b.view("#/services/shop/nothing")
	b.says("Not found", "Service shop/nothing is not known")
	b.view("#/services/..%2Fshop/x%22y") // the API refuses it
	b.says("This could not be shown")
}

// TestCertificates: they are looked for by what they have.
func TestCertificates(t *testing.T) {
	b := newTab(t, shown.url, refused401, "status of 422")
	b.signIn("operator", "#/certificates")
	b.says("17 certificates.")
	find := func(name, value, result string) {
		t.Helper()
		b.type_(name, value+kb.Enter)
		b.says(result)
		b.type_(name, "")
	}
	colons := strings.Join(slices.Collect(func(yield func(string) bool) {
		for at := 0; at < len(shown.odd.SerialNumber); at += 2 {
			if !yield(strings.ToUpper(shown.odd.SerialNumber[at : at+2])) {
				return
			}
		}
	}), ":")
	find("Serial number", colons, "1 certificate.")
	find("Namespace", "shop", "11 certificates.")
	find("SAN", markup, "1 certificate.")
	find("Identity", "spiffe://cluster.local/ns/shop/sa/cart", "4 certificates.")
	find("Identity", "shop/cart", "This can’t be looked for: identity: expected string to be a SPIFFE ID")
	find("Node", "node-c", "3 certificates.")
	find("Namespace", "SHOP!", "This can’t be looked for:")
	b.goTo("about:blank")
	b.goTo(shown.url + "#/certificates?state=overdue")
	b.says("1 certificate.", "checkout-7d9f0")
	b.picture("certificates")
}

// TestTimeline: what ends soon is drawn, said and listed.
func TestTimeline(t *testing.T) {
	b := newTab(t, shown.url, refused401, refused403)
	b.signIn("operator", "#/timeline")
	b.says("1 leaf should have been renewed.", "15 of 15", "istiod’s certificate", "Signet’s serving certificate")
	told := eval[string](b, `document.querySelector('.chart').computedName`)
	assert.Contains(t, told, "15 leaves end within 24 hours, 1 of them overdue. Most of them, ")
	assert.Equal(t, "image", eval[string](b, `document.querySelector('.chart').computedRole`))
	assert.Equal(t, 48, eval[int](b, `document.querySelectorAll('.chart .column').length`))
	assert.Equal(t, 15, eval[int](b, `[...document.querySelectorAll('.chart .column')].reduce((sum, e) => sum + parseInt(e.title), 0)`), "each leaf is in one column")
	assert.Contains(t, eval[string](b, `document.querySelector('table.certificates tbody tr').innerText`), "checkout-7d9f0", "the earliest end comes first")
	b.picture("timeline-light")
	b.media("prefers-color-scheme", "dark")
	b.picture("timeline-dark")
	b.media()
	b.click("link", "1 hour")
	b.says("No leaf ends within 1 hour.")
	assert.Equal(t, "1 hour", eval[string](b, `document.querySelector('.choices [aria-current]').innerText`))
	b.click("link", "7 days")
	b.says("17 of 17")

	shopkeeper := newTab(t, shown.url, refused401, refused403)
	shopkeeper.signIn("shopkeeper", "#/timeline")
	shopkeeper.says("9 of 9", "Only the namespaces that you may see are shown.")
	shopkeeper.silent("istiod’s certificate")
}

// TestIssuances: what is issued while somebody looks appears at the top, and what is paused waits.
func TestIssuances(t *testing.T) {
	record := func(name string) {
		t.Helper()
		pod := &corev1.Pod{}
		pod.Name, pod.UID, pod.Spec.NodeName, pod.Status.PodIP = name, types.UID(name), "node-z", "10.200.0.1"
		issued, err := shown.issue("shop", "late", pod, span{0, 24}, 0, nil)
		require.NoError(t, err)
		issued.RecordedAt = time.Now()
		require.NoError(t, shown.store.Record(t.Context(), issued))
	}
	run := fmt.Sprint(time.Now().UnixNano()) // what a former run recorded is there too
	early, first, second := "early-"+run, "late-"+run+"-"+markup, "later-"+run

	b := newTab(t, shown.url, refused401)
	record(early) // the list has it, and the watch that follows tells of it again
	b.signIn("operator", "#/issuances")
	b.says("Following.", early, "spiffe://cluster.local/"+markup, "identity (PermissionDenied), 4 times", "shop/cart at 10.1.2.3")
	table := find("table", "What was issued and refused, the latest first")
	b.until(table)
	before := eval[int](b, table+`.querySelectorAll('tbody tr').length`)
	b.picture("issuances")

	record(first)
	b.says(first)
	assert.Contains(t, eval[string](b, table+`.querySelector('tbody tr').innerText`), first, "the latest is the first")
	assert.Equal(t, before+1, eval[int](b, table+`.querySelectorAll('tbody tr').length`), "each once")
	assert.Equal(t, 1, eval[int](b, `[...document.querySelectorAll('main tbody tr')].filter((e) => e.innerText.includes(`+quote(early)+`)).length`))

	b.click("button", "Live")
	b.says("Paused.")
	record(second)
	b.silent(second)
	b.click("button", "Live")
	b.says("Following.", second)
	assert.Equal(t, before+2, eval[int](b, table+`.querySelectorAll('tbody tr').length`))

	b.click("link", "refused")
	b.says("4 times")
	b.until(`document.querySelectorAll('main tbody tr').length === 1`)
}

// TestTrust: anchors with their phases, who signs, and what ends.
func TestTrust(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/trust")
	b.says("Not renewed in time: istiod’s certificate.", "CN=mesh root 2026", "CN=mesh root 2027 ", "It waits for: the longest leaf", "in 21 h",
		"Issuer.cert-manager.io/mesh is in force", "14 of 14 namespaces carry it", "signet-1: answers with both anchors", "Secret istio-system/istiod-tls")
	assert.Equal(t, []string{"Signing", "Published"}, eval[[]string](b, `[...document.querySelectorAll('[aria-current=step]')].map((e) => e.innerText)`))
	assert.Contains(t, eval[string](b, `document.querySelector('main').textContent`), `img src=x onerror=`)
	b.picture("trust-light")
	b.media("prefers-color-scheme", "dark")
	b.picture("trust-dark")

	eval[struct{}](b, `document.querySelector('details summary').click()`)
	b.says("-----BEGIN CERTIFICATE-----")
	assert.Equal(t, shown.root.Cert.Raw, pemOf(t, eval[string](b, `document.querySelector('details[open] pre').textContent`)))
}

// TestGateways: both APIs, with hosts that are covered or not.
func TestGateways(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/gateways")
	b.says("2 gateways, 1 of them with problems.", "Host not covered", "not covered", "DNS:www.shop.example", "issuer ClusterIssuer.cert-manager.io/public", "port 443, HTTPS, TLS Terminate", "/etc/certs/"+markup)
	assert.Equal(t, []string{"*", "shop.example covered", "admin.shop.example not covered", markup + " not known whether it is covered"}, eval[[]string](b, `[...document.querySelectorAll('.hosts li')].map((e) => e.innerText)`))
	assert.Equal(t, []string{"Gateway shop/front, Gateway API", "Gateway payments/partners, Istio"}, eval[[]string](b, `[...document.querySelectorAll('article')].map((e) => e.computedName)`))
	b.picture("gateways")
	b.click("checkbox", "Only with problems")
	b.says("1 gateway, 1 of them with problems.")
}

// TestWhoMaySeeLess: what is left out is said, and what is refused is explained.
func TestWhoMaySeeLess(t *testing.T) {
	b := newTab(t, shown.url, refused401, refused403)
	b.signIn("shopkeeper", "#/services")
	b.says("1 service needs attention", "Only the namespaces that you may see are shown.", "5 services.")
	b.silent("payments", "warehouse")
	b.type_("In namespace", "payments")
	b.says("This can’t be looked for:", "system:serviceaccount:people:shopkeeper may not list services.signet.dev in namespace payments")
	b.type_("In namespace", "shop") // the form is still there
	b.says("5 services in shop.")
	b.view("#/services/payments/refunds")
	b.says("You may not see this", "system:serviceaccount:people:shopkeeper may not get services.signet.dev in namespace payments")
	b.picture("forbidden")
	b.view("#/trust")
	b.says("You may not see this", "may not get trust.signet.dev in the cluster")
	b.click("button", "Use another token")
	b.says("Sign in")

	b.signIn("stranger", "#/services")
	b.says("You may not see this", "in any namespace")
}

// TestNotAllIsKnown: nobody is told that all is well where that isn't known.
func TestNotAllIsKnown(t *testing.T) {
	reason := "it is not listed yet " + markup
	shown.view.down.Store(&reason)
	defer shown.view.down.Store(nil)
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/services")
	b.says("What is shown may not be all there is.", "a source: "+reason, "Some issuances may be missing.", "2023-11-14 22:13:20 UTC to 2023-11-14 23:13:20 UTC, signet-1: "+reason)
}

// TestKeyboard: all of it is done without a mouse, and one sees where one is.
func TestKeyboard(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/services")
	b.says("5 services need attention", "100 services")
	b.goTo(shown.url + "?") // nothing has the focus
	b.says("5 services need attention", "100 services")
	b.press(kb.Tab)
	assert.Equal(t, "Skip to the content", b.focused())
	assert.Greater(t, eval[float64](b, `document.activeElement.getBoundingClientRect().top`), -1.0, "it is seen once it has the focus")
	b.press(kb.Enter)
	assert.Equal(t, "main", eval[string](b, `document.activeElement.id`))
	assert.Equal(t, "#/services", eval[string](b, `location.hash`))
	b.tabTo("payments/invoices")
	assert.NotEqual(t, "none 0px", eval[string](b, `(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle + ' ' + s.outlineWidth })()`))
	b.press(kb.Enter)
	b.says("1 of 1 pods hold one that has expired")
	b.until(`document.activeElement.tagName === 'H1'`)
	assert.Equal(t, "invoices in payments", b.focused())

	b.press(kb.Tab, shift)
	b.press(kb.Tab, shift)
	b.press(kb.Enter) // the way back
	b.says("5 services need attention", "100 services")
	b.tabTo("Name or identity has")
	b.press("cart")
	b.says("1 of 530 services looked through matches.")
	b.tabTo("In namespace")
	b.tabTo("Only with problems")
	b.press(" ")
	b.says("No service matches.")

	// What is kept up to date keeps the focus.
	b.view("#/trust")
	b.says("CN=mesh root 2026")
	b.tabTo("Copy the SHA-256 of CN=mesh root 2026")
	eval[struct{}](b, `document.querySelector('article').dataset.old = 1; const live = document.getElementById('live'); live.click(); live.click()`)
	b.until(`document.querySelector('article') && !document.querySelector('[data-old]')`)
	assert.Equal(t, "Copy the SHA-256 of CN=mesh root 2026", b.focused())
}

// TestPhone: nothing is wider than the screen, and what is drawn as blocks is still said as a table.
func TestPhone(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.size(360, 780)
	b.says("Sign in")
	narrow := func() {
		t.Helper()
		wide := eval[[]string](b, `[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.closest('pre, .unseen, .skip, thead') && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.tagName + '.' + e.className + ' ' + e.innerText?.slice(0, 60))`)
		assert.Empty(t, wide, b.text()[:40])
		assert.LessOrEqual(t, eval[int](b, `document.documentElement.scrollWidth`), 360)
	}
	narrow()
	b.signIn("operator", "#/services")
	b.says("5 services need attention", "100 services")
	narrow()
	b.picture("phone-services")
	eval[struct{}](b, `document.querySelector('main table').scrollIntoView()`)
	b.picture("phone-table")
	for name, want := range map[string]string{"main table": "table", "main tbody": "rowgroup", "main tbody tr": "row", "main tbody th": "rowheader", "main tbody td": "cell"} {
		assert.Equal(t, want, eval[string](b, `document.querySelector(`+quote(name)+`).computedRole`), name)
	}
	for hash, text := range map[string]string{
		"#/services/payments/refunds":                        "DNS:" + markup,
		"#/timeline":                                         "15 of 15",
		"#/certificates":                                     "17 certificates",
		"#/certificates/" + shown.odd.SHA256:                 "BEGIN CERTIFICATE",
		"#/identities/" + url.PathEscape(shown.odd.Identity): "all certificates that are known",
		"#/gateways":                                         "Host not covered",
		"#/issuances":                                        "Following",
		"#/trust":                                            "CN=mesh root 2027",
	} {
		b.view(hash)
		b.says(text)
		narrow()
		b.picture(fmt.Sprintf("phone-%s-%d", strings.Split(hash, "/")[1], strings.Count(hash, "/")))
	}
	small := eval[[]string](b, `[...document.querySelectorAll('.bar a, .bar button')].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.innerText)`)
	assert.Empty(t, small, "WCAG 2.2, 2.5.8")
}

// TestColours: each text can be read in both, whether the system or the button chose them.
func TestColours(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.media("prefers-color-scheme", "light", "prefers-reduced-motion", "reduce")
	b.signIn("operator", "#/services")
	b.says("5 services need attention", "100 services")
	assert.Equal(t, "0s", eval[string](b, `getComputedStyle(document.querySelector('.life'), '::before').transitionDuration`))
	ground := `getComputedStyle(document.body).backgroundColor`
	light := eval[string](b, ground)
	readable := func(view string) {
		t.Helper()
		assert.Empty(t, eval[[]string](b, contrast), view)
	}
	theme := func(name string) {
		t.Helper()
		b.click("button", "Theme: "+name)
	}
	for hash, text := range map[string]string{
		"#/services": "100 services", "#/services/payments/refunds": "unexpected", "#/timeline": "15 of 15", "#/gateways": "Host not covered", "#/trust": "CN=mesh root 2027",
		"#/issuances": "Following", "#/certificates/" + shown.odd.SHA256: "BEGIN CERTIFICATE",
	} {
		b.view(hash)
		b.says(text)
		readable("light " + hash)
		b.media("prefers-color-scheme", "dark", "prefers-reduced-motion", "reduce")
		require.NotEqual(t, light, eval[string](b, ground))
		readable("dark " + hash)
		b.media("prefers-color-scheme", "light", "prefers-reduced-motion", "reduce")
	}
	theme("System")
	assert.Equal(t, light, eval[string](b, ground))
	theme("Light")
	assert.NotEqual(t, light, eval[string](b, ground), "dark by choice")
	b.goTo(shown.url)
	b.says("5 services need attention")
	assert.NotEqual(t, light, eval[string](b, ground), "the choice is kept")
	theme("Dark")
	assert.Equal(t, light, eval[string](b, ground))
}

// contrast are the texts whose contrast is below 4.5, or 3 where they are large (WCAG 2.2, 1.4.3).
const contrast = `(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const over = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const bad = new Set();
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility() || e.closest('.unseen, .skip') || e.disabled) continue;
    const style = getComputedStyle(e);
    const grounds = [];
    for (let at = e; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const below = light(over(grounds)), above = light(over([...grounds, style.color]));
    const ratio = (Math.max(below, above) + 0.05) / (Math.min(below, above) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) bad.add(ratio.toFixed(2) + ' ' + e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40));
  }
  return [...bad];
})()`

// TestPolicy: the browser holds the page to what it says of itself.
func TestPolicy(t *testing.T) {
	b := newTab(t, shown.url, refused401, "Content Security Policy", "requires 'Trusted", "violates")
	b.says("Sign in")
	for _, attempt := range []string{
		`document.body.insertAdjacentHTML('beforeend', '<b>x</b>')`,
		`document.querySelector('main').innerHTML = '<img src=x onerror="window.pwned=1">'`,
		`document.body.appendChild(document.createElement('script')).text = 'window.pwned=1'`,
		`new Function('window.pwned=1')()`,
		`setTimeout('window.pwned=1')`,
		`trustedTypes.createPolicy('x', {})`,
	} {
		assert.True(t, eval[bool](b, `(() => { try { `+attempt+`; return false } catch { return true } })()`), attempt)
	}
	for _, attempt := range []string{`fetch('https://example.invalid/')`, `fetch('data:,x')`} {
		assert.True(t, evalLater[bool](b, attempt+`.then(() => false, () => true)`), attempt)
	}
	assert.Empty(t, eval[string](b, `(() => { const e = document.createElement('p'); e.setAttribute('style', 'color: red'); return e.style.color })()`))
	resources := eval[[]string](b, `performance.getEntriesByType('resource').map((e) => e.name)`)
	assert.NotEmpty(t, resources)
	base := strings.TrimSuffix(shown.url, "ui/")
	for _, resource := range resources {
		if !strings.HasPrefix(resource, "https://example.invalid") && !strings.HasPrefix(resource, "data:") {
			assert.True(t, strings.HasPrefix(resource, base), resource)
		}
	}
}

// TestAServerThatLeaves: what is shown stays, and is said to be old.
func TestAServerThatLeaves(t *testing.T) {
	roots := x509.NewCertPool()
	roots.AddCert(shown.root.Cert)
	at, err := url.Parse(shown.url)
	require.NoError(t, err)
	at.Path = ""
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}
	t.Cleanup(transport.CloseIdleConnections)
	away, cancel := context.WithCancel(t.Context())
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(at) }, Transport: authorized{shown.tokens["operator"], transport}}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Err() != nil {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	b := newTab(t, proxy.URL+"/ui/#/services/shop/checkout", "status of 502")
	b.says("checkout-7d9f0")
	cancel()
	b.click("button", "Live")
	b.click("button", "Live")
	b.says("Not up to date: The server answered 502.", "checkout-7d9f0")
	b.view("#/trust")
	b.says("This could not be shown", "The server answered 502.")
	b.click("button", "Try again")
	b.says("This could not be shown")
}

// TestServed: what the page is made of is kept by browsers, and the server around it changes nothing of that.
func TestServed(t *testing.T) {
	roots := x509.NewCertPool()
	roots.AddCert(shown.root.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(method, address string, headers ...string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, address, nil)
		require.NoError(t, err)
		for n := 0; n+1 < len(headers); n += 2 {
			r.Header.Set(headers[n], headers[n+1])
		}
		answer, err := transport.RoundTrip(r)
		require.NoError(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer, string(body)
	}
	page, text := ask("GET", shown.url)
	require.Equal(t, 200, page.StatusCode)
	assert.Equal(t, "no-cache", page.Header.Get("Cache-Control"))
	script := shown.url + regexp.MustCompile(`assets/[0-9a-f]+/app\.js`).FindString(text)
	for _, address := range []string{shown.url, script} {
		first, _ := ask("GET", address, "Accept-Encoding", "gzip")
		assert.Equal(t, "gzip", first.Header.Get("Content-Encoding"), address)
		assert.Equal(t, page.Header.Get("Content-Security-Policy"), first.Header.Get("Content-Security-Policy"))
		again, body := ask("GET", address, "Accept-Encoding", "gzip", "If-None-Match", first.Header.Get("ETag"))
		assert.Equal(t, http.StatusNotModified, again.StatusCode, address)
		assert.Empty(t, body)
		head, _ := ask("HEAD", address, "Accept-Encoding", "gzip")
		assert.Equal(t, first.ContentLength, head.ContentLength)
		assert.Equal(t, first.Header.Get("Cache-Control"), head.Header.Get("Cache-Control"))
	}
	kept, _ := ask("GET", script)
	assert.Equal(t, "public, max-age=31536000, immutable", kept.Header.Get("Cache-Control"))
	moved, _ := ask("GET", strings.TrimSuffix(shown.url, "/"))
	assert.Equal(t, "ui/", moved.Header.Get("Location"))
}

// TestAWrongClock: what is left of a life is told by the server's clock.
func TestAWrongClock(t *testing.T) {
	b := newTab(t, shown.url, refused401)
	b.signIn("operator", "#/services")
	b.says("5 services need attention")
	eval[struct{}](b, `{ const right = Date.now; Date.now = () => right() + 3 * 3600_000; }`)
	b.view("#/services/shop/checkout")
	b.says("checkout-7d9f0")
	assert.Contains(t, eval[string](b, `document.querySelector('main tbody tr').innerText.replace(/\s+/g, ' ')`), "ends in 5 h")
}
