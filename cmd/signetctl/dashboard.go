package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func (p *program) dashboard() *cobra.Command {
	var port uint16
	var noBrowser bool
	c := &cobra.Command{
		Use:   "dashboard",
		Short: "Open Signet's page in a browser",
		Long: `Opens Signet's page in a browser, with your own rights, until it is interrupted. The page comes through a port of this
machine at 127.0.0.1, which lets in only the browser that was opened: the address has a secret of this run and is good
once, so don't pass it on.`,
		Example: p.examples("dashboard", "dashboard --no-browser --port 8080   then open the address that it prints"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.showDashboard(c.Context(), port, noBrowser)
		},
	}
	c.Flags().Uint16Var(&port, "port", 0, "the `port` of 127.0.0.1; default any that is free")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "print the address in place of opening it")
	return c
}

var errOpenedTwice = errors.New("the dashboard's address was opened a second time, elsewhere: it ended, because somebody else may have seen it")

func (p *program) showDashboard(ctx context.Context, port uint16, noBrowser bool) error {
	connecting, cancel := p.bound(ctx)
	defer cancel()
	s, err := p.connect(connecting)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.hasPage(connecting); err != nil {
		return err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return &failure{code: exitFailed, err: fmt.Errorf("listen for the browser: %w", err), hint: "another --port, or none for any that is free"}
	}
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	guard := newGuard(listener.Addr().(*net.TCPAddr).Port, p.proxy(s), func() { stop(errOpenedTwice) })
	server := &http.Server{
		Handler:           guard,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	var group errgroup.Group
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			stop(err)
			return fmt.Errorf("serve the browser: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-serving.Done()
		finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(finishing) != nil { // the page watches
			return server.Close()
		}
		return nil
	})
	if noBrowser {
		_, err = fmt.Fprintln(p.out, guard.address())
	} else {
		var browser *browser
		if browser, err = openBrowser(guard.address()); err == nil {
			defer browser.remove()
			p.notice("the page of %s is in your browser, at port %d; Ctrl-C ends it", s.through, guard.port)
			select {
			case err = <-browser.ended:
				if guard.opened.Load() {
					err = nil // some end when they were told, others when they are closed
				}
			case <-serving.Done():
			}
		}
	}
	if err != nil {
		stop(err)
	}
	if ended := group.Wait(); ended != nil && err == nil {
		err = ended
	}
	if errors.Is(context.Cause(serving), errOpenedTwice) {
		return &failure{code: exitFailed, err: errOpenedTwice, hint: "run it again; with other users on this machine, don't show its address"}
	}
	return err
}

// hasPage asks for the page, and for what it needs a token for, so that what is wrong is told here.
func (s *session) hasPage(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base.JoinPath("ui/").String(), nil)
	if err != nil {
		return err
	}
	response, err := s.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return &failure{code: exitFailed, err: fmt.Errorf("open Signet's page: it answered %s", response.Status), hint: "this Signet may be too old to have one; signetctl services shows the same"}
	}
	return nil
}

// proxy passes requests on with who is asking. What a browser sends of itself stays here.
func (p *program) proxy(s *session) http.Handler {
	return &httputil.ReverseProxy{
		Transport: s.http.Transport,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(s.base)
			r.Out.Host = s.base.Host
			r.Out.Header = make(http.Header)
			for _, name := range []string{"Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "If-None-Match", "User-Agent"} {
				if values := r.In.Header.Values(name); len(values) > 0 {
					r.Out.Header[name] = values
				}
			}
		},
		ModifyResponse: func(response *http.Response) error {
			header := response.Header
			header.Del("Set-Cookie")
			header.Del("WWW-Authenticate") // or the browser asks for a password
			header.Del("Strict-Transport-Security")
			header.Set("Referrer-Policy", "no-referrer") // the path is a secret
			if at := header.Get("Location"); at != "" {
				if to, err := url.Parse(at); err != nil || to.IsAbs() || to.Host != "" || strings.HasPrefix(to.Path, "/") {
					return errors.New("it leads elsewhere")
				}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // nobody waits
			}
			refuse(w, http.StatusBadGateway, clean(p.explain(err).Error()))
		},
	}
}

// browser is what the desktop opened an address with.
type browser struct {
	dir   string
	ended chan error // how the desktop's program ended
}

// remove takes away what had the address.
func (b *browser) remove() { _ = os.RemoveAll(b.dir) }

// openBrowser has the desktop open an address. The address isn't on a command line, where others on this machine could
// read it, but in a file that only this user can read. The program that is started is nobody's to end: it may be the
// browser itself.
func openBrowser(address string) (*browser, error) {
	b := &browser{ended: make(chan error, 1)}
	var err error
	if b.dir, err = os.MkdirTemp("", "signetctl-"); err != nil {
		return nil, notOpened(err)
	}
	file := filepath.Join(b.dir, "dashboard.html")
	text := fmt.Sprintf("<!doctype html><meta charset=utf-8><title>Signet</title><meta http-equiv=refresh content=\"0;url=%[1]s\"><a href=\"%[1]s\">Signet</a>\n", address)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.remove()
		return nil, notOpened(err)
	}
	name, args := "xdg-open", []string{file}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", file}
	}
	command := exec.Command(name, args...) //nolint:noctx // the browser may outlive us
	if err := command.Start(); err != nil {
		b.remove()
		return nil, notOpened(err)
	}
	go func() { // ends with the program, or with us
		if err := command.Wait(); err != nil {
			b.ended <- notOpened(err)
			return
		}
		b.ended <- nil
	}()
	return b, nil
}

func notOpened(err error) error {
	return &failure{code: exitFailed, err: fmt.Errorf("open a browser: %w", err), hint: "dashboard --no-browser prints the address in place of opening it"}
}
