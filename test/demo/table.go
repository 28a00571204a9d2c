package main

import (
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/signet-ca/signet/issuer"
)

// A row is what is known of one workload's certificate.
type row struct {
	namespace, account string
	leaf               *x509.Certificate // nil until one was verified
	renewals           int
	problem            string // why what the agent holds now is not good; empty when it is
}

// holds says whether the workload holds a verified certificate.
func (r row) holds() bool { return r.leaf != nil && r.problem == "" }

// A column is a title and what stands below it.
type column struct {
	title string
	value func(row) string
}

// certColumn is a column that is a dash where there is no certificate.
func certColumn(title string, value func(*x509.Certificate) string) column {
	return column{title, func(r row) string {
		if r.leaf == nil {
			return "-"
		}
		return value(r.leaf)
	}}
}

var (
	namespaceColumn = column{"NAMESPACE", func(r row) string { return r.namespace }}
	accountColumn   = column{"SERVICE ACCOUNT", func(r row) string { return r.account }}
	renewalsColumn  = column{"RENEWALS", func(r row) string { return strconv.Itoa(r.renewals) }}

	issuerColumn = certColumn("ISSUER", func(c *x509.Certificate) string { return c.Issuer.String() })
	sansColumn   = certColumn("SANS", func(c *x509.Certificate) string { return strings.Join(names(c), ",") })
	serialColumn = certColumn("SERIAL", serial)
	beforeColumn = certColumn("NOT BEFORE", func(c *x509.Certificate) string { return c.NotBefore.UTC().Format(time.RFC3339) })
	afterColumn  = certColumn("NOT AFTER", func(c *x509.Certificate) string { return c.NotAfter.UTC().Format(time.RFC3339) })
	shortSerial  = certColumn("SERIAL", func(c *x509.Certificate) string { return clip(serial(c), 9) })
	shortBefore  = certColumn("NOT BEFORE", func(c *x509.Certificate) string { return c.NotBefore.UTC().Format("15:04:05Z") })
	shortAfter   = certColumn("NOT AFTER", func(c *x509.Certificate) string { return c.NotAfter.UTC().Format("15:04:05Z") })
)

// layouts are the ways to show the table, from the widest to the narrowest.
var layouts = [][]column{
	{namespaceColumn, accountColumn, sansColumn, serialColumn, beforeColumn, afterColumn, issuerColumn, renewalsColumn},
	{namespaceColumn, accountColumn, sansColumn, shortSerial, shortBefore, shortAfter, issuerColumn, renewalsColumn},
	{namespaceColumn, accountColumn, sansColumn, shortSerial, shortBefore, shortAfter, renewalsColumn},
	{namespaceColumn, accountColumn, shortSerial, shortBefore, shortAfter, renewalsColumn},
}

// table shows rows in the widest layout that fits into width characters, or in the narrowest; in the
// widest when width is 0. Below it is a line for each problem, and one where columns were left out. It
// doesn't end with a new line.
func table(rows []row, width int) string {
	var lines []string
	complete := 0 // the least width that has all columns
	for _, layout := range layouts {
		var needed int
		lines, needed = render(layout, rows)
		if len(layout) == len(layouts[0]) {
			complete = needed
		}
		if width == 0 || needed <= width {
			break
		}
	}
	for _, r := range rows {
		if r.problem != "" {
			lines = append(lines, fmt.Sprintf("%s/%s: %s", r.namespace, r.account, r.problem))
		}
	}
	if width > 0 && width < complete {
		lines = append(lines, fmt.Sprintf("(a terminal of %d columns shows the rest)", complete))
	}
	return strings.Join(lines, "\n")
}

// render aligns the cells of one layout, three spaces between two columns, and returns the lines and
// the length of the longest in characters.
func render(layout []column, rows []row) (lines []string, width int) {
	lines = make([]string, len(rows)+1)
	for _, col := range layout {
		cells := []string{col.title}
		for _, r := range rows {
			cells = append(cells, col.value(r))
		}
		if width > 0 {
			width += 3
		}
		for i := range lines {
			lines[i] += strings.Repeat(" ", width-utf8.RuneCountInString(lines[i])) + cells[i]
		}
		for _, line := range lines {
			width = max(width, utf8.RuneCountInString(line))
		}
	}
	return lines, width
}

// serial is the serial number as Signet and signetctl say it.
func serial(leaf *x509.Certificate) string { return issuer.Serial(leaf.SerialNumber) }

// names are all alternative names that the certificate has.
func names(leaf *x509.Certificate) []string {
	var all []string
	for _, uri := range leaf.URIs {
		all = append(all, uri.String())
	}
	all = append(all, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return append(all, leaf.EmailAddresses...)
}
