// Package producer has the messages that the component of a route sends while it answers a request. Each call is one commit: when it returns, all of its messages are stored, or none is.
package producer

import (
	"time"

	"millrace/internal/columns"
	"millrace/internal/host"
)

// Header is a name and a value.
type Header struct {
	Name  string
	Value []byte
}

// Outgoing is a message to send.
type Outgoing struct {
	// Key decides the partition and the order; nil is none.
	Key []byte
	// Value is nil for a message without one: in a compacted topic it removes its key.
	Value   []byte
	Headers []Header
	// Partition is nil if the topic's partitioner chooses.
	Partition *int
	// Timestamp and DeliverAt are in milliseconds since the Unix epoch; 0 is now, and at once.
	Timestamp, DeliverAt uint64
}

// Place is where a message is.
type Place struct {
	Partition int
	Offset    uint64
	// Later is whether the message is delivered later: then it has no offset yet.
	Later bool
}

// Sent are sent messages.
type Sent struct {
	// Places are in the order of the messages.
	Places []Place
	// Repeated is whether an earlier call with the same key sent them, and this one did nothing.
	Repeated bool
}

// NotGranted is the error of a topic that the route is not granted.
type NotGranted struct{ Reason string }

// Refused is the error of messages that the topic does not take; to repeat the call does not help.
type Refused struct{ Reason string }

// KeyReused is the error of a key that was used before, for other messages.
type KeyReused struct{ Reason string }

// Unavailable is the error of a host that cannot store messages now; a later call may succeed.
type Unavailable struct{ Reason string }

// Error is the reason.
func (e *NotGranted) Error() string { return e.Reason }

// Error is the reason.
func (e *Refused) Error() string { return e.Reason }

// Error is the reason.
func (e *KeyReused) Error() string { return e.Reason }

// Error is the reason.
func (e *Unavailable) Error() string { return e.Reason }

// Send sends messages to a topic. The error is one of this package's.
func Send(topic string, messages ...Outgoing) (*Sent, error) { return send(topic, "", false, messages) }

// SendOnce is like Send, once: a repeat with the same key, by any request to this route, returns the first places. A provider's message id makes a repeated webhook one message.
func SendOnce(topic, key string, messages ...Outgoing) (*Sent, error) {
	return send(topic, key, true, messages)
}

// Settled waits until a processor has settled messages of a topic; false if it has not within this time, which is also part of the request's own.
func Settled(processor, topic string, sent *Sent, patience time.Duration) (bool, error) {
	places := host.Sent{Repeated: sent.Repeated}
	for _, place := range sent.Places {
		offset := place.Offset
		if place.Later {
			offset = host.Later
		}
		places.Partitions = append(places.Partitions, uint32(place.Partition))
		places.Offsets = append(places.Offsets, offset)
	}
	settled, problem, why := host.Settled(processor, topic, places, uint64(max(0, patience.Milliseconds())))
	return settled, errorOf(problem, why)
}

func send(topic, key string, hasKey bool, messages []Outgoing) (*Sent, error) {
	sent, problem, why := host.Send(topic, columnsOf(messages), key, hasKey)
	if err := errorOf(problem, why); err != nil {
		return nil, err
	}
	result := &Sent{Repeated: sent.Repeated}
	for index, partition := range sent.Partitions {
		place := Place{Partition: int(partition), Offset: sent.Offsets[index]}
		if place.Offset == host.Later {
			place.Offset, place.Later = 0, true
		}
		result.Places = append(result.Places, place)
	}
	return result, nil
}

func errorOf(problem host.Problem, why string) error {
	switch problem {
	case host.Fine:
		return nil
	case host.NotGranted:
		return &NotGranted{why}
	case host.KeyReused:
		return &KeyReused{why}
	case host.Unavailable:
		return &Unavailable{why}
	default:
		return &Refused{why}
	}
}

func columnsOf(messages []Outgoing) *host.Outgoing {
	var out host.Outgoing
	put := func(column []uint32, bytes []byte) []uint32 {
		if bytes == nil {
			return append(column, 0, columns.None)
		}
		column = append(column, uint32(len(out.Data)), uint32(len(bytes)))
		out.Data = append(out.Data, bytes...)
		return column
	}
	for _, message := range messages {
		out.Keys = put(out.Keys, message.Key)
		out.Values = put(out.Values, message.Value)
		for _, header := range message.Headers {
			out.Headers = put(out.Headers, []byte(header.Name))
			out.Headers = put(out.Headers, header.Value)
		}
		out.HeaderEnds = append(out.HeaderEnds, uint32(len(out.Headers)/4))
		partition := columns.None
		if message.Partition != nil {
			partition = uint32(*message.Partition)
		}
		out.Partitions = append(out.Partitions, partition)
		out.Times = append(out.Times, message.Timestamp, message.DeliverAt)
	}
	return &out
}
