// {{name}} greets whoever a message names, and counts in state how often.
package main

import (
	"strconv"

	"millrace"
	"millrace/config"
	"millrace/state"
)

func init() { millrace.Processor(greet) }

func main() {}

func greet(m *millrace.Message) millrace.Outcome {
	if m.Value == nil {
		return millrace.Reject("no-value", "there is nobody to greet")
	}
	times, err := state.Add(m, m.Value, 1)
	if err != nil {
		return millrace.Retry("state-full", err.Error())
	}
	greeting, ok := config.Get("greeting")
	if !ok {
		greeting = "hello"
	}
	output := m.Output().AppendValue([]byte(greeting), []byte(", "), m.Value)
	return millrace.Emit(output.Header("times", strconv.FormatInt(times, 10)))
}
