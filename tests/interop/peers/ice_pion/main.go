// pion's ICE agent as a peer of tools/icepeers.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pion/ice/v2"
)

type object = map[string]interface{}

type command struct {
	Do          string
	Name        string
	Controlling bool
	Stun        []interface{}
	Relay       *struct{ URL, Username, Password string }
	RelayOnly   bool `json:"relay_only"`
	Transports  []string
	Lite, Hide  bool
	Ufrag, Pwd  string
	Candidate   *string
	Count       int
}

var output sync.Mutex

func tell(event string, fields object) {
	if fields == nil {
		fields = object{}
	}
	fields["event"] = event
	output.Lock()
	defer output.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(fields)
}

func failed(what string, err error) {
	tell("failed", object{"why": fmt.Sprintf("%s: %v", what, err)})
}

type peer struct {
	name        string
	controlling bool
	agent       *ice.Agent
	conn        *ice.Conn
	mux         ice.TCPMux
	restarted   atomic.Bool
}

func (p *peer) start(c command) error {
	p.name, p.controlling = c.Name, c.Controlling
	config := &ice.AgentConfig{InsecureSkipVerify: true, Lite: c.Lite}
	if c.Hide {
		config.MulticastDNSMode = ice.MulticastDNSModeQueryAndGather
	}
	for _, transport := range c.Transports {
		switch transport {
		case "udp":
			config.NetworkTypes = append(config.NetworkTypes, ice.NetworkTypeUDP4, ice.NetworkTypeUDP6)
		case "tcp":
			config.NetworkTypes = append(config.NetworkTypes, ice.NetworkTypeTCP4, ice.NetworkTypeTCP6)
			listener, err := net.Listen("tcp", ":0")
			if err != nil {
				return err
			}
			p.mux = ice.NewTCPMuxDefault(ice.TCPMuxParams{Listener: listener, ReadBufferSize: 64})
			config.TCPMux = p.mux
		}
	}
	if c.Stun != nil {
		url, err := ice.ParseURL(fmt.Sprintf("stun:%v:%v", c.Stun...))
		if err != nil {
			return err
		}
		config.Urls = append(config.Urls, url)
	}
	if c.Relay != nil {
		url, err := ice.ParseURL(c.Relay.URL)
		if err != nil {
			return err
		}
		url.Username, url.Password = c.Relay.Username, c.Relay.Password
		config.Urls = append(config.Urls, url)
	}
	if c.RelayOnly {
		config.CandidateTypes = []ice.CandidateType{ice.CandidateTypeRelay}
	} else if c.Lite {
		config.CandidateTypes = []ice.CandidateType{ice.CandidateTypeHost}
	}
	agent, err := ice.NewAgent(config)
	if err != nil {
		return err
	}
	p.agent = agent
	if err = agent.OnCandidate(func(candidate ice.Candidate) {
		if candidate == nil {
			tell("candidate", object{"candidate": nil})
		} else {
			tell("candidate", object{"candidate": "candidate:" + candidate.Marshal()})
		}
	}); err != nil {
		return err
	}
	if err = agent.OnConnectionStateChange(func(state ice.ConnectionState) {
		switch {
		case state == ice.ConnectionStateFailed:
			failed("state", fmt.Errorf("ICE failed"))
		case state == ice.ConnectionStateConnected && p.restarted.Load():
			tell("connected", nil)
		}
	}); err != nil {
		return err
	}
	return p.gather()
}

func (p *peer) gather() error {
	ufrag, pwd, err := p.agent.GetLocalUserCredentials()
	if err != nil {
		return err
	}
	tell("credentials", object{"ufrag": ufrag, "pwd": pwd})
	return p.agent.GatherCandidates()
}

func (p *peer) restart() error {
	p.restarted.Store(true)
	if err := p.agent.Restart("", ""); err != nil {
		return err
	}
	return p.gather()
}

func (p *peer) connect(ufrag, pwd string) {
	var err error
	if p.controlling {
		p.conn, err = p.agent.Dial(context.Background(), ufrag, pwd)
	} else {
		p.conn, err = p.agent.Accept(context.Background(), ufrag, pwd)
	}
	if err != nil {
		failed("connect", err)
		return
	}
	tell("connected", nil)
	buffer := make([]byte, 65536)
	for {
		n, err := p.conn.Read(buffer)
		if err != nil {
			return
		}
		tell("data", object{"text": string(buffer[:n])})
	}
}

func (p *peer) add(text *string) error {
	if text == nil {
		return nil // it knows no end of candidates
	}
	candidate, err := ice.UnmarshalCandidate(strings.TrimPrefix(*text, "candidate:"))
	if err != nil {
		return err
	}
	return p.agent.AddRemoteCandidate(candidate)
}

func endOf(candidate ice.Candidate) object {
	end := object{
		"type":      candidate.Type().String(),
		"transport": candidate.NetworkType().NetworkShort(),
		"address":   candidate.Address(),
		"port":      candidate.Port(),
		"tcptype":   nil,
	}
	if candidate.TCPType() != ice.TCPTypeUnspecified {
		end["tcptype"] = candidate.TCPType().String()
	}
	return end
}

func (p *peer) obey(c command) error {
	switch c.Do {
	case "start":
		return p.start(c)
	case "restart":
		return p.restart()
	case "remote":
		if p.restarted.Load() {
			return p.agent.SetRemoteCredentials(c.Ufrag, c.Pwd)
		}
		go p.connect(c.Ufrag, c.Pwd)
	case "candidate":
		return p.add(c.Candidate)
	case "send":
		for n := 0; n < c.Count; n++ {
			text := fmt.Sprintf("%s %d %s", p.name, n, strings.Repeat("x", n*50))
			if _, err := p.conn.Write([]byte(text)); err != nil {
				return err
			}
		}
	case "pair":
		pair, err := p.agent.GetSelectedCandidatePair()
		if err != nil {
			return err
		}
		tell("pair", object{"local": endOf(pair.Local), "remote": endOf(pair.Remote)})
	}
	return nil
}

func main() {
	p := &peer{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			failed("command", err)
			continue
		}
		if c.Do == "close" {
			break
		}
		if err := p.obey(c); err != nil {
			failed(c.Do, err)
		}
	}
	if p.agent != nil {
		_ = p.agent.Close()
	}
	if p.mux != nil {
		_ = p.mux.Close()
	}
}
