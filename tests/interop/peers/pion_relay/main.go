// Two pion clients that relay to each other, through one TURN server or one each.
//
//	pion_relay udp|tcp|tls HOST[,HOST] PORT USER PASSWORD
//
// With tls the server's certificate is not verified.  Prints one JSON object: how many messages
// each got back unchanged, or what failed.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v2"
)

const messages = 50

func fail(what string, err error) {
	_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"failed": fmt.Sprintf("%s: %v", what, err)})
	os.Exit(1)
}

func dial(kind, server string) net.PacketConn {
	switch kind {
	case "udp":
		conn, err := net.ListenPacket("udp4", "0.0.0.0:0")
		if err != nil {
			fail("listen", err)
		}
		return conn
	case "tcp":
		conn, err := net.Dial("tcp", server)
		if err != nil {
			fail("dial", err)
		}
		return turn.NewSTUNConn(conn)
	case "tls":
		conn, err := tls.Dial("tcp", server, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			fail("dial", err)
		}
		return turn.NewSTUNConn(conn)
	}
	fail("kind", fmt.Errorf("%q is not udp, tcp or tls", kind))
	return nil
}

func allocate(kind, server, user, password string) (*turn.Client, net.PacketConn) {
	client, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: server,
		TURNServerAddr: server,
		Conn:           dial(kind, server),
		Username:       user,
		Password:       password,
		LoggerFactory:  logging.NewDefaultLoggerFactory(),
	})
	if err != nil {
		fail("client", err)
	}
	if err = client.Listen(); err != nil {
		fail("client listen", err)
	}
	relay, err := client.Allocate()
	if err != nil {
		fail("allocate", err)
	}
	return client, relay
}

func main() {
	kind, port, user, password := os.Args[1], os.Args[3], os.Args[4], os.Args[5]
	hosts := strings.Split(os.Args[2], ",")
	oneClient, one := allocate(kind, net.JoinHostPort(hosts[0], port), user, password)
	last := net.JoinHostPort(hosts[len(hosts)-1], port)
	otherClient, other := allocate(kind, last, user, password)
	defer oneClient.Close()
	defer otherClient.Close()
	if err := oneClient.CreatePermission(other.LocalAddr()); err != nil {
		fail("permission", err)
	}
	if err := otherClient.CreatePermission(one.LocalAddr()); err != nil {
		fail("permission", err)
	}
	// The other side sends back whatever comes.
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := other.ReadFrom(buffer)
			if err != nil {
				return
			}
			if _, err = other.WriteTo(buffer[:n], from); err != nil {
				return
			}
		}
	}()
	same := 0
	buffer := make([]byte, 4096)
	for n := 0; n < messages; n++ {
		message := append([]byte(fmt.Sprintf("message %d ", n)), bytes.Repeat([]byte("x"), n*20)...)
		if _, err := one.WriteTo(message, other.LocalAddr()); err != nil {
			fail("write", err)
		}
		_ = one.SetReadDeadline(time.Now().Add(5 * time.Second))
		got, from, err := one.ReadFrom(buffer)
		if err != nil {
			fail(fmt.Sprintf("read of message %d", n), err)
		}
		if bytes.Equal(buffer[:got], message) && from.String() == other.LocalAddr().String() {
			same++
		}
	}
	if err := one.Close(); err != nil {
		fail("close", err)
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"same": same, "relayed": []string{one.LocalAddr().String(), other.LocalAddr().String()},
	})
}
