package millracetest

import (
	"strings"
	"testing"

	"millrace/http"
	"millrace/internal/columns"
	"millrace/internal/host"
	"millrace/producer"
)

// RouteTester calls a function that answers HTTP, as a host does for a route, and keeps what it sends.
type RouteTester struct {
	t      testing.TB
	answer func(*http.Request) *http.Response
	memory *host.Memory
	// Config has the settings of the route.
	Config map[string]string
	// Secrets has those that are granted; one with the value nil is unavailable.
	Secrets map[string][]byte
	// Views has the state of processors that the route may read, by processor.
	Views map[string]map[string][]byte
	// Failure is an error of package producer with which every call that sends ends; nil if it succeeds.
	Failure error
}

// Sent is a message that was sent.
type Sent struct {
	Topic, Key, Value string
	NoKey, NoValue    bool
	Headers           []Header
	// Partition is -1 if the topic's partitioner chooses.
	Partition int
	// Timestamp and DeliverAt are 0 for now, and for at once.
	Timestamp, DeliverAt uint64
}

// NewRoute is a tester of a function that http.Answer registers.
func NewRoute(t testing.TB, answer func(*http.Request) *http.Response) *RouteTester {
	memory := host.NewMemory()
	return &RouteTester{t: t, answer: answer, memory: memory, Config: memory.Config, Secrets: memory.Secrets, Views: memory.Views}
}

// Ask is the answer to a request.
func (tester *RouteTester) Ask(method, target, body string, headers ...http.Header) *http.Response {
	tester.t.Helper()
	memory := tester.memory
	memory.Config, memory.Secrets, memory.Views = tester.Config, tester.Secrets, tester.Views
	memory.SendProblem, memory.SendWhy = tester.failure()
	host.Current = memory
	request := &http.Request{Method: method, Target: target, Body: []byte(body)}
	for _, header := range headers {
		request.Headers = append(request.Headers, http.Header{Name: strings.ToLower(header.Name), Value: header.Value})
	}
	response := tester.answer(request)
	if response == nil {
		tester.t.Fatal("the function that answers returned nil")
	}
	return response
}

func (tester *RouteTester) failure() (host.Problem, string) {
	tester.t.Helper()
	switch failure := tester.Failure.(type) {
	case nil:
		return host.Fine, ""
	case *producer.NotGranted:
		return host.NotGranted, failure.Reason
	case *producer.Refused:
		return host.Refused, failure.Reason
	case *producer.KeyReused:
		return host.KeyReused, failure.Reason
	case *producer.Unavailable:
		return host.Unavailable, failure.Reason
	default:
		tester.t.Fatalf("%v is not an error of package producer", failure)
		return host.Fine, ""
	}
}

// Sent are the messages that were sent so far, in order.
func (tester *RouteTester) Sent() []Sent {
	var all []Sent
	for call, messages := range tester.memory.Sent {
		text := func(column []uint32, index int) (string, bool) {
			start, length := column[index*2], column[index*2+1]
			if length == columns.None {
				return "", true
			}
			return string(messages.Data[start : start+length]), false
		}
		first := uint32(0)
		for index, end := range messages.HeaderEnds {
			sent := Sent{Topic: tester.memory.Topics[call], Partition: -1}
			sent.Key, sent.NoKey = text(messages.Keys, index)
			sent.Value, sent.NoValue = text(messages.Values, index)
			for header := first; header < end; header++ {
				name, _ := text(messages.Headers, int(header)*2)
				value, _ := text(messages.Headers, int(header)*2+1)
				sent.Headers = append(sent.Headers, Header{name, value})
			}
			first = end
			if partition := messages.Partitions[index]; partition != columns.None {
				sent.Partition = int(partition)
			}
			sent.Timestamp, sent.DeliverAt = messages.Times[index*2], messages.Times[index*2+1]
			all = append(all, sent)
		}
	}
	return all
}

// Lines are the lines that the function logged so far.
func (tester *RouteTester) Lines() []string {
	var lines []string
	for _, line := range tester.memory.Lines {
		lines = append(lines, line.Text)
	}
	return lines
}
