// {{name}} takes names by HTTP and sends them to a topic, and says which greeting they will get.
//
//	GET …/greeting  the greeting of the settings, as JSON
//	POST …/names    with a name as the body: sends it, and says where it is
package main

import (
	"path"
	"strings"

	"millrace/config"
	"millrace/http"
	"millrace/logging"
	"millrace/producer"
)

func init() { http.Answer(answer) }

func main() {}

const nameBytesMax = 100

func answer(r *http.Request) *http.Response {
	// The path begins with that of the route, wherever that is.
	switch path.Base(r.Path()) {
	case "greeting":
		if r.Method != "GET" {
			return failure(405, "a greeting is read with GET").Header("allow", "GET")
		}
		return http.JSON(200, map[string]string{"greeting": setting("greeting", "hello")})
	case "names":
		if r.Method != "POST" {
			return failure(405, "a name is sent with POST").Header("allow", "POST")
		}
		return take(r)
	}
	return failure(404, "there are only greeting and names")
}

func setting(key, usual string) string {
	if value, ok := config.Get(key); ok {
		return value
	}
	return usual
}

func take(r *http.Request) *http.Response {
	name := strings.TrimSpace(string(r.Body))
	if name == "" || len(name) > nameBytesMax {
		return failure(400, "send a name as the body, as text")
	}
	topic := setting("topic", "names")
	message := producer.Outgoing{Key: []byte(name), Value: []byte(name)}
	var sent *producer.Sent
	var err error
	// A caller that repeats a request with the same key sends one message.
	if key, ok := r.Header("idempotency-key"); ok {
		sent, err = producer.SendOnce(topic, key, message)
	} else {
		sent, err = producer.Send(topic, message)
	}
	if err != nil {
		return notSent(err)
	}
	place := sent.Places[0]
	return http.JSON(202, map[string]any{"topic": topic, "partition": place.Partition, "offset": place.Offset})
}

// notSent is an answer that makes the caller do what helps: try again, or stop.
func notSent(err error) *http.Response {
	logging.Error("a name was not sent: " + err.Error())
	switch err.(type) {
	case *producer.Unavailable:
		return failure(503, "try again later")
	case *producer.KeyReused:
		return failure(409, "the key was used for another name")
	case *producer.Refused:
		return failure(422, "the topic does not take this name")
	default:
		return failure(500, "the route is not set up")
	}
}

func failure(status int, why string) *http.Response {
	return http.JSON(status, map[string]string{"error": why})
}
