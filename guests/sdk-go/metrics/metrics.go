// Package metrics has the module's own metrics, on the host's /metrics with the label processor. They count what calls did, including calls whose batch was tried again.
//
// Names of metrics and labels have 1 to 60 of the characters a-z, 0-9 and _, and begin with a letter; a wrong one is a trap (wit/metrics.wit has the exact rules).
package metrics

import "millrace/internal/host"

// Label is a name and a value.
type Label = host.Label

// Add adds to the counter guest_<name>_total.
func Add(name string, delta uint64, labels ...Label) { host.CounterAdd(name, delta, labels) }

// Set sets the gauge guest_<name>.
func Set(name string, value float64, labels ...Label) { host.GaugeSet(name, value, labels) }

// Observe records a value in the histogram guest_<name>_observed.
func Observe(name string, value float64, labels ...Label) {
	host.HistogramObserve(name, value, labels)
}
