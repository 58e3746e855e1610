// The null extender: what Go costs an extender that decides nothing.
//
// It answers POST /filter as kube-scheduler's contract asks (k8s.io/kube-scheduler/extender/v1) with
// net/http and encoding/json: node names that end in 0 pass, the others fail with one constant text. It
// prints its address on the first line of standard output and ends with its standard input.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	extender "k8s.io/kube-scheduler/extender/v1"
)

// One of the texts that the extender under test gives, so that the answers are of a size.
const refusal = `VersionMajorMismatch: software_version: source has "1.1.0", target accepts "2.1.0"`

func filter(w http.ResponseWriter, r *http.Request) {
	var args extender.ExtenderArgs
	if err := json.NewDecoder(r.Body).Decode(&args); err != nil || args.NodeNames == nil {
		http.Error(w, fmt.Sprintf("not ExtenderArgs with NodeNames: %v", err), http.StatusBadRequest)
		return
	}
	passed := make([]string, 0, len(*args.NodeNames))
	failed := extender.FailedNodesMap{}
	for _, name := range *args.NodeNames {
		if strings.HasSuffix(name, "0") {
			passed = append(passed, name)
		} else {
			failed[name] = refusal
		}
	}
	w.Header().Set("Content-Type", "application/json")
	result := extender.ExtenderFilterResult{NodeNames: &passed, FailedAndUnresolvableNodes: failed}
	if err := json.NewEncoder(w).Encode(&result); err != nil {
		log.Print(err)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	http.HandleFunc("POST /filter", filter)
	log.Fatal(http.Serve(listener, nil))
}
