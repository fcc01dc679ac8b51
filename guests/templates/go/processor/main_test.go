package main

import (
	"testing"

	"millrace/millracetest"
)

func TestWhoeverIsNamedIsGreeted(t *testing.T) {
	tester := millracetest.New(t, greet)
	tester.Config["greeting"] = "good day"
	run := tester.Run(millracetest.Message{Key: "1", Value: "Ada"}, millracetest.Message{Key: "2", Value: "Ada"}, millracetest.Message{Key: "3", NoValue: true})

	if got := run.OutputsOf(0)[0].Value; got != "good day, Ada" {
		t.Errorf("the first output is %q", got)
	}
	if times, _ := run.OutputsOf(1)[0].Header("times"); times != "2" {
		t.Errorf("the second greeting is number %q", times)
	}
	if got := run.Said(2); got != millracetest.Rejected("no-value", "there is nobody to greet") {
		t.Errorf("a message without a value: %v", got)
	}
	if got := tester.Number("Ada"); got != 2 {
		t.Errorf("state has %d", got)
	}
}
