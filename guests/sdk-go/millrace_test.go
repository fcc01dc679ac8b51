package millrace_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"millrace"
	"millrace/config"
	"millrace/logging"
	"millrace/metrics"
	"millrace/millracetest"
	"millrace/secrets"
	"millrace/state"
)

type message = millracetest.Message
type header = millracetest.Header

func named(name, value string) header { return header{Name: name, Value: value} }

func output(key, value string, headers ...header) millracetest.Output {
	return millracetest.Output{Key: key, Value: value, Headers: headers, Partition: -1}
}

func expect(t *testing.T, got, wanted any) {
	t.Helper()
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("got %#v\nexpected %#v", got, wanted)
	}
}

func TestAnOutputKeepsWhatIsNotChanged(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome { return millrace.Emit(m.Output()) })
	run := tester.Run(message{Key: "k", Value: "v", Headers: []header{named("a", "1")}, Timestamp: 7}, message{NoKey: true, NoValue: true})
	expect(t, run.Outputs(), []millracetest.Output{
		{Key: "k", Value: "v", Headers: []header{named("a", "1")}, Partition: -1, Timestamp: 7}, {NoKey: true, NoValue: true, Partition: -1},
	})
}

func TestColumnsFillUpWhenALaterOutputDiffers(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		o := m.Output()
		if m.Index == 1 {
			o.Key([]byte("new")).Header("b", "2").Topic("other").Partition(3).Timestamp(9).DeliverAt(11).ValueText("changed")
		}
		return millrace.Emit(o)
	})
	run := tester.Run(message{Key: "1", Value: "x", Headers: []header{named("a", "1")}}, message{Key: "2", Value: "y", Headers: []header{named("a", "2")}}, message{Key: "3", Value: "z"})
	expect(t, run.Outputs(), []millracetest.Output{
		output("1", "x", named("a", "1")),
		{Key: "new", Value: "changed", Headers: []header{named("a", "2"), named("b", "2")}, Topic: "other", Partition: 3, Timestamp: 9, DeliverAt: 11},
		output("3", "z"),
	})
}

func TestAMessageCanHaveSeveralOutputs(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		first, second := m.Output().Header("n", "1"), m.Output().Header("n", "2")
		return millrace.Emit(first.Header("last", "1").Topic("a"), second.WithoutHeaders().Header("only", "2").Topic("b").Value(nil))
	})
	run := tester.Run(message{Key: "k", Value: "v", Headers: []header{named("from", "x")}})
	expect(t, run.Outputs(), []millracetest.Output{
		{Key: "k", Value: "v", Headers: []header{named("from", "x"), named("n", "1"), named("last", "1")}, Topic: "a", Partition: -1},
		{Key: "k", NoValue: true, Headers: []header{named("only", "2")}, Topic: "b", Partition: -1},
	})
}

func TestValuesAreBuiltInPiecesOfInputAndOutput(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		o := m.Output().AppendValue([]byte("hello, "), m.Value)
		other := m.Output().BuildValue(func(empty []byte) []byte { return append(append(empty, m.Value...), strings.Repeat("!", 100)...) })
		return millrace.Emit(o.AppendValue([]byte(".")), other, m.Output().Value(m.Value[1:]))
	})
	run := tester.Run(message{Value: "Ada"}, message{Value: "Bob"})
	var values []string
	for _, output := range run.Outputs() {
		values = append(values, output.Value)
	}
	marks := strings.Repeat("!", 100)
	expect(t, values, []string{"hello, Ada.", "Ada" + marks, "da", "hello, Bob.", "Bob" + marks, "ob"})
}

func TestBytesThatAHandlerChangedWhereTheyAreAreSentChanged(t *testing.T) {
	tester := millracetest.New(t, func(batch *millrace.Batch) {
		for m := range batch.Messages() {
			part := m.Output().Value(m.Value[1:])
			for _, bytes := range [][]byte{m.Key, m.Value, m.Header("h")} {
				copy(bytes, strings.ToUpper(string(bytes)))
			}
			kept, changed := m.Output(), m.Output().Header("n", "new").Value(m.Value[1:])
			if m.Index == 1 {
				kept = m.Output()
				m.Key, m.Value = []byte("other"), nil
			}
			batch.Answer(millrace.Emit(part, kept, changed))
		}
	})
	run := tester.Run(message{Key: "k1", Value: "one", Headers: []header{named("h", "x")}}, message{Key: "k2", Value: "two", Headers: []header{named("h", "y")}})
	expect(t, run.Outputs(), []millracetest.Output{
		output("K1", "ne", named("h", "X")), output("K1", "ONE", named("h", "X")), output("K1", "NE", named("h", "X"), named("n", "new")),
		output("other", "wo", named("h", "Y")), {Key: "other", NoValue: true, Headers: []header{named("h", "Y")}, Partition: -1},
		output("other", "WO", named("h", "Y"), named("n", "new")),
	})
}

func TestBytesThatAHandlerUsesAgainLeaveEarlierOutputsAlone(t *testing.T) {
	buffer := make([]byte, 0, 10)
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		buffer = append(append(buffer[:0], "v-"...), m.Value...)
		return millrace.Emit(m.Output().Value(buffer).HeaderBytes("h", buffer))
	})
	run := tester.Run(message{Value: "1"}, message{Value: "2"})
	expect(t, run.Outputs(), []millracetest.Output{output("", "v-1", named("h", "v-1")), output("", "v-2", named("h", "v-2"))})
}

func TestAValueIsBuiltWhileOtherOutputsAreWritten(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		o := m.Output().ValueText("some")
		other := m.Output()
		built := m.Output().BuildValue(func(empty []byte) []byte {
			to := append(empty, "built"...)
			other.BuildValue(func(inner []byte) []byte { return append(inner, "inner"...) }).Header("while", "building")
			return append(to, " up"...)
		})
		trimmed := m.Output().BuildValue(func(empty []byte) []byte { return append(empty, "  x"...)[2:] })
		return millrace.Emit(o, other, built, trimmed)
	})
	run := tester.Run(message{}, message{})
	once := []millracetest.Output{output("", "some"), output("", "inner", named("while", "building")), output("", "built up"), output("", "x")}
	expect(t, run.Outputs(), append(once, once...))
}

func TestOutputsThatAreNilAreLeftOut(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		if m.Index == 0 {
			return millrace.Emit(nil, m.Output(), nil)
		}
		return millrace.EmitAll([]*millrace.Output{nil})
	})
	run := tester.Run(message{Key: "k", Value: "v"}, message{})
	expect(t, run.Outputs(), []millracetest.Output{output("k", "v")})
	expect(t, run.Said(1), millracetest.Acked())
}

func TestANumberIsAddedForEachMessageOrNone(t *testing.T) {
	tester := millracetest.New(t, func(batch *millrace.Batch) {
		sums, err := state.AddDeltas(batch, []int64{5, -2})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, sums, []int64{5, 3})
		func() {
			defer func() { expect(t, recover(), "millrace: AddDeltas: give one number for each message") }()
			_, _ = state.AddDeltas(batch, []int64{1})
		}()
		batch.Answer(millrace.Ack())
		batch.Answer(millrace.Ack())
	})
	tester.Run(message{Key: "a"}, message{Key: "a"})
	expect(t, tester.Number("a"), int64(3))
}

func TestEveryOutcomeReachesTheAnswer(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		switch string(m.Value) {
		case "retry":
			return millrace.RetryAfter(3*time.Second, "busy", "503")
		case "reject":
			return millrace.Reject("bad", "no")
		case "all":
			return millrace.EmitAll(nil)
		}
		return millrace.Emit(m.Output())
	})
	run := tester.Run(message{Value: "retry"}, message{Value: "x"}, message{Value: "reject"}, message{Value: "all"})
	expect(t, run.Said(0), millracetest.Said{Outcome: "retry", Class: "busy", Reason: "503", DelayMs: 3000})
	expect(t, run.Said(1), millracetest.Emitted())
	expect(t, run.Said(2), millracetest.Rejected("bad", "no"))
	expect(t, run.Said(3), millracetest.Acked())
}

func TestAnUnavailableBatchChangesNothing(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		if _, err := state.Add(m, []byte("n"), 1); err != nil {
			t.Fatal(err)
		}
		_, err := secrets.Get("token")
		return millrace.Unavailable(err.Error())
	})
	tester.Secrets["token"] = nil
	run := tester.Run(message{Value: "x"})
	expect(t, run.Unavailable, "the secret token has no value now")
	expect(t, tester.Number("n"), int64(0))
}

func TestWritesOfAFailedMessageAreDiscarded(t *testing.T) {
	tester := millracetest.New(t, func(batch *millrace.Batch) {
		sums, err := state.AddKeys(batch)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			if string(m.Value) == "bad" {
				batch.Answer(millrace.Reject("bad", ""))
			} else {
				batch.Answer(millrace.Emit(m.Output().ValueText(strings.Repeat("i", int(sums[m.Index])))))
			}
		}
	})
	run := tester.Run(message{Key: "a", Value: "bad"}, message{Key: "a"}, message{NoKey: true}, message{Key: "a"})
	expect(t, []string{run.OutputsOf(1)[0].Value, run.OutputsOf(2)[0].Value, run.OutputsOf(3)[0].Value}, []string{"i", "i", "ii"})
	expect(t, tester.Number("a"), int64(2))
}

func TestStateIsReadWrittenAndListed(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		var writes state.Writes
		writes.Set(m, []byte("p/1"), []byte("one"))
		writes.SetFor(m, []byte("p/2"), []byte(""), 1000)
		writes.Delete(m, []byte("old"))
		if err := writes.Write(); err != nil {
			t.Fatal(err)
		}
		found := state.GetMany([][]byte{[]byte("p/2"), []byte("old"), []byte("p/1")})
		expect(t, found, [][]byte{{}, nil, []byte("one")})
		expect(t, state.Scan([]byte("p/"), []byte("p/1"), 10), []state.Entry{{Key: []byte("p/2"), Value: []byte{}}})
		return millrace.Ack()
	})
	tester.SetState("old", "x")
	tester.Run(message{})
	_, exists := tester.State("old")
	expect(t, exists, false)
}

func TestSettingsMetricsAndLogAreThereInATest(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		suffix, ok := config.Get("suffix")
		expect(t, ok, true)
		metrics.Add("seen", 2, metrics.Label{Name: "kind", Value: "x"})
		logging.Info("seen " + suffix)
		return millrace.Ack()
	})
	tester.Config["suffix"] = "!"
	run := tester.Run(message{}, message{})
	expect(t, run.Lines(), []string{"seen !", "seen !"})
	expect(t, tester.Metric(`seen{kind="x"}`), 4.0)
}

func TestHeadersAreReadByNameAndInOrder(t *testing.T) {
	tester := millracetest.New(t, func(m *millrace.Message) millrace.Outcome {
		var all []string
		for header := range m.Headers() {
			all = append(all, header.Name+"="+string(header.Value))
		}
		return millrace.Emit(m.Output().ValueText(strings.Join(all, " ")).HeaderBytes("last", m.Header("a")))
	})
	run := tester.Run(message{}, message{Headers: []header{named("a", "1"), named("b", "2"), named("a", "3")}})
	expect(t, run.OutputsOf(1)[0].Value, "a=1 b=2 a=3")
	last, _ := run.OutputsOf(1)[0].Header("last")
	expect(t, last, "3")
}

func TestAPartitionerIsCalledWithAMessage(t *testing.T) {
	choose := func(m *millrace.Message, partitions int) int { return len(m.Key) % partitions }
	expect(t, millracetest.Partition(t, choose, 4, message{Key: "abcde"}), 1)
}
