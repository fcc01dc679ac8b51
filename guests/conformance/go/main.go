// The processor of the conformance scenario (../README.md), in Go.
package main

import (
	"bytes"
	"strconv"

	"millrace"
	"millrace/config"
	"millrace/logging"
	"millrace/metrics"
	"millrace/state"
)

func init() { millrace.BatchProcessor(process) }

func main() {}

func process(batch *millrace.Batch) {
	suffix, _ := config.Get("suffix")
	counts, err := state.AddKeys(batch)
	for m := range batch.Messages() {
		if err != nil {
			batch.Answer(millrace.Retry("state-full", err.Error()))
		} else {
			batch.Answer(answer(m, suffix, counts[m.Index]))
		}
	}
	metrics.Add("handled", uint64(batch.Len()), metrics.Label{Name: "language", Value: "go"})
}

func answer(m *millrace.Message, suffix string, count int64) millrace.Outcome {
	switch {
	case bytes.HasPrefix(m.Value, []byte("retry")):
		return millrace.Retry("later", "told to wait")
	case bytes.HasPrefix(m.Value, []byte("reject")):
		logging.Warn("rejected the message at offset " + strconv.FormatUint(m.Offset, 10))
		return millrace.Reject("bad", "told to reject")
	case bytes.HasPrefix(m.Value, []byte("trap")):
		panic("told to trap")
	}
	output := m.Output().Header("count", strconv.FormatInt(count, 10))
	if m.Value != nil {
		output.BuildValue(func(to []byte) []byte {
			for _, c := range m.Value {
				if 'a' <= c && c <= 'z' {
					c -= 'a' - 'A'
				}
				to = append(to, c)
			}
			return append(to, suffix...)
		})
	}
	return millrace.Emit(output)
}
