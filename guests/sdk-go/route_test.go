package millrace_test

import (
	"errors"
	"fmt"
	"testing"

	"millrace/http"
	"millrace/millracetest"
	"millrace/producer"
	"millrace/views"
)

func sends(r *http.Request) *http.Response {
	message := producer.Outgoing{Value: r.Body, Headers: []producer.Header{{Name: "path", Value: []byte(r.Path())}}}
	if r.Query() != "" {
		message.DeliverAt = 7
	}
	key, _ := r.Header("Key")
	sent, err := producer.SendOnce("names", key, message)
	var reused *producer.KeyReused
	if errors.As(err, &reused) {
		return http.Text(409, reused.Reason)
	}
	return http.Text(202, fmt.Sprint(*sent))
}

func TestWhatIsSentWithAKeyIsSentOnce(t *testing.T) {
	tester := millracetest.NewRoute(t, sends)
	ask := func(target, body, key string) string {
		return string(tester.Ask("POST", target, body, http.Header{Name: "KEY", Value: key}).Body)
	}
	for _, step := range [][4]string{
		{"/a", "Ada", "k", "{[{0 0 false}] false}"},
		{"/a", "Ada", "k", "{[{0 0 false}] true}"},
		{"/a", "Bob", "k", "the key was used before, for other messages"},
		{"/b?later", "Bob", "l", "{[{0 0 true}] false}"},
	} {
		if got := ask(step[0], step[1], step[2]); got != step[3] {
			t.Errorf("%v: %s", step, got)
		}
	}
	sent := tester.Sent()
	if len(sent) != 2 || !sent[0].NoKey || sent[0].Value != "Ada" || sent[0].Headers[0].Value != "/a" || sent[1].DeliverAt != 7 {
		t.Errorf("sent: %+v", sent)
	}
}

func TestStateIsThatOfTheGrantedProcessors(t *testing.T) {
	read := func(*http.Request) *http.Response {
		view := views.Of("counts")
		number, err := view.Number([]byte("ada"))
		if err != nil {
			return http.Text(500, err.Error())
		}
		absent, _ := view.Get([]byte("bob"))
		page, _ := view.Scan(0, []byte("a"), nil, 1)
		return http.Text(200, fmt.Sprint(number, absent == nil, len(page.Entries), page.HasMore))
	}
	tester := millracetest.NewRoute(t, read)
	if got := tester.Ask("GET", "/", "").Status; got != 500 {
		t.Errorf("without a grant the status is %d", got)
	}
	tester.Views["counts"] = map[string][]byte{"ada": {3, 0, 0, 0, 0, 0, 0, 0}, "adam": []byte("x")}
	if got := string(tester.Ask("GET", "/", "").Body); got != "3 true 1 true" {
		t.Errorf("read: %s", got)
	}
}
