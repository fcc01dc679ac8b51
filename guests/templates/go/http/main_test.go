package main

import (
	"testing"

	"millrace/http"
	"millrace/millracetest"
	"millrace/producer"
)

func TestANameIsSentOnceForEachKey(t *testing.T) {
	tester := millracetest.NewRoute(t, answer)
	tester.Config["topic"] = "guests"
	key := http.Header{Name: "Idempotency-Key", Value: "7"}
	first := tester.Ask("POST", "/hello/names", "Ada", key)
	again := tester.Ask("POST", "/hello/names", "Ada", key)

	if first.Status != 202 || string(again.Body) != string(first.Body) {
		t.Errorf("%d %s, and then %d %s", first.Status, first.Body, again.Status, again.Body)
	}
	if sent := tester.Sent(); len(sent) != 1 || sent[0].Topic != "guests" || sent[0].Value != "Ada" {
		t.Errorf("sent: %v", sent)
	}
}

func TestANameThatCannotBeSentNowIsToBeSentAgain(t *testing.T) {
	tester := millracetest.NewRoute(t, answer)
	tester.Failure = &producer.Unavailable{Reason: "stopping"}

	if got := tester.Ask("POST", "/names", "Ada").Status; got != 503 {
		t.Errorf("the status is %d", got)
	}
}

func TestTheGreetingIsASetting(t *testing.T) {
	tester := millracetest.NewRoute(t, answer)
	tester.Config["greeting"] = "good day"

	if got := string(tester.Ask("GET", "/greeting", "").Body); got != `{"greeting":"good day"}` {
		t.Errorf("the answer is %s", got)
	}
}
