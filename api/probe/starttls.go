package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/signet-ca/signet/api"
)

// Errors of STARTTLS.
var (
	errNoStartTLS = errors.New("it offers no STARTTLS")
	errInjected   = errors.New("behind the answer to STARTTLS there is plaintext")
)

const (
	// maxLineBytes is more than any of the protocols allows for a line of an answer.
	maxLineBytes = 4 << 10
	// maxLines bounds the lines of one answer.
	maxLines = 100
)

// startTLS talks to a mail server until it is ready for the handshake.
//
// What it sends behind its answer is an error: it can't be told from what somebody between put there, and whoever takes
// it for a part of what comes in TLS believes them.
func startTLS(conn *boundedConn, protocol api.ProbeProtocol) error {
	lines := bufio.NewReaderSize(conn, maxLineBytes)
	var err error
	switch protocol {
	case api.ProbeSMTP:
		err = startSMTP(lines, conn)
	case api.ProbeIMAP:
		err = startIMAP(lines, conn)
	case api.ProbePOP3:
		err = startPOP3(lines, conn)
	default:
		return nil
	}
	if err == nil && lines.Buffered() > 0 {
		err = errInjected
	}
	return err
}

// line is the next one, without its end.
func line(lines *bufio.Reader) (string, error) {
	text, err := lines.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errors.New("its answer is no line of text")
	case errors.Is(err, io.EOF):
		return "", errors.New("it ended the connection before TLS")
	case err != nil:
		return "", err
	}
	return string(bytes.TrimRight(text, "\r\n")), nil
}

// startSMTP is RFC 3207.
func startSMTP(lines *bufio.Reader, to io.Writer) error {
	code, _, err := replySMTP(lines)
	if err != nil {
		return err
	}
	if code != "220" {
		return fmt.Errorf("it doesn't greet: its code is %s", code)
	}
	if _, err := io.WriteString(to, "EHLO signet.invalid\r\n"); err != nil {
		return err
	}
	code, extensions, err := replySMTP(lines)
	if err != nil {
		return err
	}
	offers := false
	for _, extension := range extensions[1:] { // the first is its name
		word, _, _ := strings.Cut(extension, " ")
		offers = offers || strings.EqualFold(word, "STARTTLS")
	}
	if code != "250" || !offers {
		return errNoStartTLS
	}
	if _, err := io.WriteString(to, "STARTTLS\r\n"); err != nil {
		return err
	}
	if code, _, err = replySMTP(lines); err == nil && code != "220" {
		err = fmt.Errorf("it refuses STARTTLS with code %s", code)
	}
	return err
}

// replySMTP is a reply of RFC 5321 §4.2.1: its code, and the text of each line.
func replySMTP(lines *bufio.Reader) (code string, texts []string, err error) {
	for range maxLines {
		text, err := line(lines)
		if err != nil {
			return "", nil, err
		}
		if len(text) < 3 || strings.Trim(text[:3], "0123456789") != "" || code != "" && text[:3] != code || len(text) > 3 && text[3] != ' ' && text[3] != '-' {
			return "", nil, errors.New("its answer is not SMTP")
		}
		code = text[:3]
		texts = append(texts, text[min(4, len(text)):])
		if len(text) == 3 || text[3] == ' ' {
			return code, texts, nil
		}
	}
	return "", nil, errTooMuch
}

// startIMAP is RFC 9051 §6.2.1.
func startIMAP(lines *bufio.Reader, to io.Writer) error {
	greeting, err := line(lines)
	if err != nil {
		return err
	}
	if !hasWords(greeting, "*", "OK") { // PREAUTH can't start TLS any more
		return errors.New("it doesn't greet as a server of IMAP that takes STARTTLS")
	}
	if _, err := io.WriteString(to, "signet STARTTLS\r\n"); err != nil {
		return err
	}
	for range maxLines {
		text, err := line(lines)
		switch {
		case err != nil:
			return err
		case hasWords(text, "signet", "OK"):
			return nil
		case hasWords(text, "signet"):
			return errNoStartTLS
		case !hasWords(text, "*"):
			return errors.New("its answer is not IMAP")
		}
	}
	return errTooMuch
}

// startPOP3 is RFC 2595 §4.
func startPOP3(lines *bufio.Reader, to io.Writer) error {
	greeting, err := line(lines)
	if err != nil {
		return err
	}
	if !hasWords(greeting, "+OK") {
		return errors.New("it doesn't greet as a server of POP3")
	}
	if _, err := io.WriteString(to, "STLS\r\n"); err != nil {
		return err
	}
	answer, err := line(lines)
	switch {
	case err != nil:
		return err
	case hasWords(answer, "+OK"):
		return nil
	case hasWords(answer, "-ERR"):
		return errNoStartTLS
	}
	return errors.New("its answer is not POP3")
}

// hasWords says whether a line begins with these words, whatever their case.
func hasWords(text string, words ...string) bool {
	fields := strings.Fields(text)
	if len(fields) < len(words) {
		return false
	}
	for i, word := range words {
		if !strings.EqualFold(fields[i], word) {
			return false
		}
	}
	return true
}
