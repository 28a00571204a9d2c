// Package prometheus tests what operators are given to watch Signet with, by Prometheus' own code: the alerts and the
// Grafana dashboard of the chart. The dashboard is made here: go test -run TestDashboard -update.
package prometheus
