// Everything that the SDK for Go has for routes, in one answer: tests/languages/templates --probe.
package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"millrace/http"
	"millrace/producer"
	"millrace/views"
)

func init() { http.Answer(answer) }

func main() {}

func answer(r *http.Request) *http.Response {
	if r.Method == "POST" {
		name, _ := r.Header("X-Name")
		return http.Text(200, fmt.Sprintf("POST %s %s %s %d", r.Path(), r.Query(), name, len(r.Body)))
	}
	view, partition := views.Of("counts"), 1
	number := must(view.Number([]byte("ada")))
	bob := "none"
	if value := must(view.Get([]byte("bob"))); value != nil {
		bob = string(value)
	}
	page := must(view.Scan(0, []byte("a"), nil, 1))
	last := must(view.Scan(0, []byte("a"), []byte("ada"), 10))
	messages := []producer.Outgoing{
		{Value: []byte("v"), Headers: []producer.Header{{Name: "h", Value: []byte("w")}}, Partition: &partition, Timestamp: 5, DeliverAt: 9999999999999},
		{Key: []byte("k")},
	}
	sent := must(producer.Send("t", messages...))
	var places []string
	for _, place := range sent.Places {
		offset := fmt.Sprint(place.Offset)
		if place.Later {
			offset = "later"
		}
		places = append(places, fmt.Sprintf("%d:%s", place.Partition, offset))
	}
	settled := must(producer.Settled("counts", "t", sent, 5*time.Millisecond))
	text := fmt.Sprintf("number %d, bob %s, partitions %d, first %s, more %t, last %d %t, placed %s, settled %t", number, bob, must(view.Partitions()),
		page.Entries[0].Key, page.HasMore, len(last.Entries), last.HasMore, strings.Join(places, " "), settled)
	var noView *views.NotGranted
	if _, err := views.Of("others").Get([]byte("ada")); errors.As(err, &noView) {
		text += ", other view not-granted"
	}
	var noTopic *producer.NotGranted
	if _, err := producer.Send("others", messages...); errors.As(err, &noTopic) {
		text += ", other topic not-granted"
	}
	return http.Text(200, text).Header("X-Probe", "yes")
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
