//go:build !wasip1

package millrace

import (
	"slices"

	"millrace/internal/columns"
	"millrace/internal/run"
)

func init() {
	run.Answer = func(input columns.Batch, process any) (columns.Answer, string, bool) {
		batch := &Batch{columns: input}
		batch.begin()
		switch process := process.(type) {
		case func(*Message) Outcome:
			answerEach(batch, process)
		case func(*Batch):
			process(batch)
		default:
			panic("millracetest: a handler is a func(*millrace.Message) millrace.Outcome or a func(*millrace.Batch)")
		}
		batch.end()
		return batch.answer, batch.unavailable, batch.isUnavailable
	}
	run.Assign = func(input columns.Batch, partitions int, choose any) []int {
		batch := &Batch{columns: input}
		batch.begin()
		var chosen []int
		for message := range batch.Messages() {
			chosen = append(chosen, choose.(func(*Message, int) int)(message, partitions))
		}
		return slices.Clip(chosen)
	}
}
