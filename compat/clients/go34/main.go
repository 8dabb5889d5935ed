// Calls a server through clientv3 of etcd 3.4, which takes the whole URL of an endpoint for its authority where it dials
// one endpoint only.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/clientv3"
)

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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := client.Put(ctx, "clients/34", "value"); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("member list: %w", err)
	}
	endpoints := []string{endpoint}
	for _, member := range members.Members {
		endpoints = append(endpoints, member.ClientURLs...)
	}
	for _, endpoint := range endpoints {
		if _, err := client.Status(ctx, endpoint); err != nil {
			return fmt.Errorf("status of %s: %w", endpoint, err)
		}
		if _, err := client.HashKV(ctx, endpoint, 0); err != nil {
			return fmt.Errorf("hashkv of %s: %w", endpoint, err)
		}
	}
	return nil
}
