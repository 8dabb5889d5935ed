// Calls a server through clientv3 of etcd 3.5.0, which names every call's authority "#initially=[…]".
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Leases that are kept alive at once: three times as many as fit unread into the library that the gateway is built on.
const leases = 10000

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(endpoint string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := client.Put(ctx, "clients/35", "value"); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	got, err := client.Get(ctx, "clients/35")
	if err != nil || len(got.Kvs) != 1 {
		return fmt.Errorf("get: %v, %w", got, err)
	}
	if _, err := client.Status(ctx, endpoint); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if _, err := client.HashKV(ctx, endpoint, 0); err != nil {
		return fmt.Errorf("hashkv: %w", err)
	}
	if err := keepAlive(ctx, client); err != nil {
		return err
	}
	return watch(ctx, client)
}

// keepAlive holds many leases on one stream, and wants every one to be renewed.
func keepAlive(ctx context.Context, client *clientv3.Client) error {
	granted := make(chan (<-chan *clientv3.LeaseKeepAliveResponse), leases)
	failed := make(chan error, 64)
	for worker := 0; worker < 64; worker++ {
		go func(worker int) {
			for n := worker; n < leases; n += 64 {
				lease, err := client.Grant(ctx, 120)
				if err != nil {
					failed <- fmt.Errorf("grant: %w", err)
					return
				}
				kept, err := client.KeepAlive(ctx, lease.ID)
				if err != nil {
					failed <- fmt.Errorf("keep alive: %w", err)
					return
				}
				granted <- kept
			}
			failed <- nil
		}(worker)
	}
	for worker := 0; worker < 64; worker++ {
		if err := <-failed; err != nil {
			return err
		}
	}
	for n := 0; n < leases; n++ {
		if answer, ok := <-<-granted; !ok || answer.TTL != 120 {
			return fmt.Errorf("lease %d of %d is not kept: %v", n, leases, answer)
		}
	}
	return nil
}

// watch opens many watches at once on one connection, each on a stream of its own.
func watch(ctx context.Context, client *clientv3.Client) error {
	created := make(chan error, leases)
	for n := 0; n < leases; n++ {
		go func(n int) {
			own := context.WithValue(clientv3.WithRequireLeader(ctx), n, n)
			_, ok := <-client.Watch(own, "clients/35", clientv3.WithCreatedNotify())
			if !ok {
				created <- fmt.Errorf("watch %d of %d is not created", n, leases)
				return
			}
			created <- nil
		}(n)
	}
	for n := 0; n < leases; n++ {
		if err := <-created; err != nil {
			return err
		}
	}
	return nil
}
