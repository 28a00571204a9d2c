package web

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chromium is the browser that the tests share. Each test has a profile of its own in it.
type chromium struct {
	ctx     context.Context
	cancels []context.CancelFunc
	dir     string
}

// newChromium starts it. It trusts the world's server by its key, and nobody else.
func newChromium(ctx context.Context, w *world) (*chromium, error) {
	dir, err := os.MkdirTemp("", "signet-chromium-")
	if err != nil {
		return nil, err
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.UserDataDir(dir),
		chromedp.NoSandbox, // the tests may run as root
		chromedp.WSURLReadTimeout(patience),
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", w.pin),
		chromedp.Flag("enable-blink-features", "ComputedAccessibilityInfo"), // computedRole, computedName
		chromedp.Flag("lang", "en-GB"),
	)
	b := &chromium{dir: dir}
	allocating, cancel := chromedp.NewExecAllocator(ctx, options...)
	b.cancels = append(b.cancels, cancel)
	b.ctx, cancel = chromedp.NewContext(allocating)
	b.cancels = append(b.cancels, cancel)
	if err := chromedp.Do(b.ctx); err != nil {
		return nil, fmt.Errorf("start Chromium: %w", err)
	}
	return b, nil
}

func (b *chromium) stop() error {
	err := chromedp.Cancel(b.ctx)
	for _, cancel := range slices.Backward(b.cancels) {
		cancel()
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(b.dir)
}

// pinOf is what Chromium knows a key by.
func pinOf(key crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // it has just been made
	}
	sum := sha256.Sum256(der)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tab is a tab of a profile of its own. What goes wrong in it fails the test.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	trouble  []string // guarded by mu
	expected []string // texts of trouble that must come
}

// newTab opens one at an address. Expected are parts of the trouble that this test brings about.
func newTab(t *testing.T, url string, expected ...string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithNewBrowserContext())
	b := &tab{t: t, ctx: ctx, expected: expected}
	require.NoError(t, chromedp.Listen(ctx, b.heard))
	t.Cleanup(func() {
		if !t.Failed() {
			assert.False(t, eval[bool](b, `'pwned' in window`), "a name became a script")
			assert.Zero(t, eval[int](b, `document.querySelectorAll('main img, main script, main iframe, main object').length`), "a name became an element")
		} else if os.Getenv("SIGNET_SCREENSHOTS") != "" {
			b.picture("failed-" + strings.ReplaceAll(t.Name(), "/", "-"))
		}
		b.mu.Lock()
		for _, text := range b.trouble {
			if !slices.ContainsFunc(expected, func(part string) bool { return strings.Contains(text, part) }) {
				assert.Fail(t, "the browser complains", text)
			}
		}
		b.mu.Unlock()
		cancel()
	})
	_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	b.size(1280, 800)
	b.goTo(url)
	return b
}

// heard notes complaints: of scripts, of the network, and of the Content-Security-Policy.
func (b *tab) heard(event any) {
	text := ""
	switch e := event.(type) {
	case *cdpruntime.EventExceptionThrown:
		text = "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
	case *cdpruntime.EventConsoleAPICalled:
		if e.Type != cdpruntime.ConsoleAPICalledTypeError && e.Type != cdpruntime.ConsoleAPICalledTypeWarning {
			return
		}
		text = "console:"
		for _, arg := range e.Args {
			text += " " + string(arg.Value) + arg.Description
		}
	case *log.EventEntryAdded:
		if e.Entry.Level != log.EntryLevelError && e.Entry.Level != log.EntryLevelWarning {
			return
		}
		text = fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trouble = append(b.trouble, text)
}

// do runs a step, with patience.
func (b *tab) do(step chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, step))
}

func (b *tab) goTo(url string) {
	b.t.Helper()
	b.do(chromedp.Navigate(url))
}

// view goes to a view as a link does, and waits until it is drawn, so that nothing of the one before is taken for its own.
func (b *tab) view(hash string) {
	b.t.Helper()
	evalLater[chromedp.Void](b, `new Promise((done) => {
		const before = location.href;
		addEventListener('hashchange', () => done(), {once: true});
		location.hash = `+quote(hash)+`;
		if (location.href === before) done();
	})`)
	b.until(`!document.querySelector('main').hasAttribute('aria-busy')`)
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height))
}

// media sets features of media, such as prefers-color-scheme.
func (b *tab) media(features ...string) {
	b.t.Helper()
	var set []*emulation.MediaFeature
	for n := 0; n+1 < len(features); n += 2 {
		set = append(set, &emulation.MediaFeature{Name: features[n], Value: features[n+1]})
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: set})
	require.NoError(b.t, err)
}

// eval asks for the value of an expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, asPage))
	require.NoError(b.t, err, expression)
	return value
}

// asPage lets an expression do only what the page's policy lets its own scripts do.
func asPage(p *cdpruntime.EvaluateParams) { p.AllowUnsafeEvalBlockedByCSP = new(bool) }

// evalLater is eval for a promise.
func evalLater[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, asPage, chromedp.EvalAwaitPromise))
	require.NoError(b.t, err, expression)
	return value
}

// until waits for an expression to be true, and says what is shown where it never is.
func (b *tab) until(expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !eval[bool](b, `Boolean(`+expression+`)`); time.Sleep(15 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(b.t, "it never comes true: "+expression, "shown is:\n%s", b.text())
		}
	}
}

// says waits until texts are shown.
func (b *tab) says(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		b.until(`document.body.innerText.includes(` + quote(text) + `)`)
	}
}

// silent requires texts not to be shown now.
func (b *tab) silent(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		assert.NotContains(b.t, b.text(), text)
	}
}

func (b *tab) text() string { return eval[string](b, `document.body.innerText`) }

// press presses keys.
func (b *tab) press(keys string, options ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, options...))
}

// tabTo presses Tab until what has the focus is called name.
func (b *tab) tabTo(name string) {
	b.t.Helper()
	var passed []string
	for range 60 {
		b.press(kb.Tab)
		focused := b.focused()
		if focused == name {
			return
		}
		passed = append(passed, focused)
	}
	require.Fail(b.t, "Tab never gets to "+name, "it passes %q", passed)
}

// focused is the name of what has the focus, as a screen reader says it.
func (b *tab) focused() string {
	return eval[string](b, `document.activeElement.computedName ?? ''`)
}

// click clicks on what is called name, a button or link or such.
func (b *tab) click(role, name string) {
	b.t.Helper()
	b.until(find(role, name))
	eval[chromedp.Void](b, find(role, name)+`.click()`)
}

// find is an expression for the first element with a role and a name in the accessibility tree. The tree is looked at
// for candidates only, because it is slow.
func find(role, name string) string {
	return `[...document.querySelectorAll('a, button, input, select, table, summary')]` +
		`.find((e) => ((e.labels?.[0] ?? e.caption ?? e).textContent.includes(` + quote(name) + `) || e.ariaLabel === ` + quote(name) +
		`) && e.checkVisibility() && e.computedRole === ` + quote(role) + ` && e.computedName === ` + quote(name) + `)`
}

// type_ types into the input that is called name, in place of what was there.
func (b *tab) type_(name, text string) {
	b.t.Helper()
	b.until(`document.querySelectorAll('input').length`)
	eval[chromedp.Void](b, `{ const e = [...document.querySelectorAll('input')].find((e) => e.computedName === `+quote(name)+`); e.focus(); e.select(); }`)
	if text == "" {
		b.press(kb.Delete)
		return
	}
	b.press(text)
}

// signIn gives the tab a token, as typing it does, and goes to a view.
func (b *tab) signIn(who, hash string) {
	b.t.Helper()
	b.says("Sign in")
	// In one step, because the view is drawn anew when the address changes.
	eval[chromedp.Void](b, `location.hash = `+quote(hash)+`; document.getElementById('token').value = `+quote(shown.tokens[who])+`; document.querySelector('main form').requestSubmit()`)
}

// picture is written where SIGNET_SCREENSHOTS says.
func (b *tab) picture(name string) {
	dir := os.Getenv("SIGNET_SCREENSHOTS")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	shot, err := chromedp.Call(ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{})
	if assert.NoError(b.t, err) {
		assert.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), shot.Data, 0o644))
	}
}

func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // texts can be written
	}
	return string(quoted)
}

// shift is held with a key.
var shift = chromedp.KeyModifiers(chromedp.ModifierShift)

// pemOf is the DER of a single block.
func pemOf(t *testing.T, text string) []byte {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	require.NotNil(t, block)
	require.Empty(t, strings.TrimSpace(string(rest)))
	return block.Bytes
}
