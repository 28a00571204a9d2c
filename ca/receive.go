package ca

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	istioca "istio.io/api/security/v1alpha1"
)

const (
	// maxMessageBytes bounds a request: a CSR and a little metadata.
	maxMessageBytes = 32 << 10
	// maxFrameBytes is what gRPC takes of a message at all. It answers a larger one by itself, with
	// ResourceExhausted, which clients send again (R46); one up to here gets our own answer, which they
	// don't.
	maxFrameBytes = 2 << 20
	// receiving bounds the messages that are received at once, since each may take maxFrameBytes of memory,
	// and receivingPerAddress those from one address. A message is mostly there already when its turn comes.
	receiving           = 128
	receivingPerAddress = 16
	maxReceiveWaiting   = 10_000
	// receiveTime is how long a message may take once it is its turn: clients send it right behind the headers, and who
	// sends none must not keep the place from others.
	receiveTime = 5 * time.Second
)

// frame is a message as it came, before anything of it is parsed.
type frame struct {
	size int
	data []byte // nil where size is above maxMessageBytes
}

// frameCodec lets handlers receive a frame; all else is protobuf.
type frameCodec struct{ encoding.CodecV2 }

func newFrameCodec() frameCodec { return frameCodec{encoding.GetCodecV2("proto")} }

// Unmarshal implements [encoding.CodecV2].
func (c frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if f.size = data.Len(); f.size <= maxMessageBytes {
		f.data = data.Materialize()
	}
	return nil
}

// receive reads the one message of a request, which must arrive before ctx ends.
func (s *Server) receive(ctx context.Context, stream grpc.ServerStream, address string) (*istioca.IstioCertificateRequest, error) {
	release, err := s.receiving.acquire(ctx, address, address)
	switch {
	case errors.Is(err, context.Canceled):
		return nil, kindCanceled.because("receive the request: %w", err)
	case err != nil:
		return nil, kindOverloaded.because("receive the request: %w", err)
	}
	defer release()
	f, err := s.receiveFrame(stream)
	if err != nil {
		return nil, err
	}
	if f.size > maxMessageBytes {
		return nil, kindTooLarge.saying("%d bytes; at most %d are allowed", f.size, maxMessageBytes)
	}
	request := new(istioca.IstioCertificateRequest)
	if err := proto.Unmarshal(f.data, request); err != nil {
		return nil, kindMalformed.because("decode the request: %w", err)
	}
	return request, nil
}

// receiveFrame waits for the message for receiveTime. A message that never comes is waited for until the stream ends,
// which the answer brings about.
func (s *Server) receiveFrame(stream grpc.ServerStream) (*frame, error) {
	type received struct {
		frame *frame
		err   error
	}
	arrived := make(chan received, 1)
	s.receivers.Go(func() {
		f := new(frame)
		arrived <- received{f, stream.RecvMsg(f)}
	})
	timer := time.NewTimer(receiveTime)
	defer timer.Stop()
	select {
	case r := <-arrived:
		if r.err != nil {
			return nil, receiveRefusal(r.err)
		}
		return r.frame, nil
	case <-timer.C:
		return nil, kindNotArrived.because("no message within %s of its turn", receiveTime)
	}
}

// receiveRefusal turns what gRPC says of a message that didn't come into a refusal.
func receiveRefusal(err error) error {
	if errors.Is(err, io.EOF) {
		return kindMalformed.saying("it holds no message")
	}
	switch status.Code(err) {
	case codes.ResourceExhausted: // larger than maxFrameBytes
		return kindTooLarge.because("receive the request: %w", err)
	case codes.DeadlineExceeded:
		return kindNotArrived.because("receive the request: %w", err)
	case codes.Canceled, codes.Unavailable:
		return kindCanceled.because("receive the request: %w", err)
	}
	return kindMalformed.because("receive the request: %w", err)
}
