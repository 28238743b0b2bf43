// Checks our checkpoints and proofs with golang.org/x/mod/sumdb: note and tlog, which nobody of p2pfl wrote.
//
// Reads one JSON object a line and answers each with one line, "ok" or the reason:
//
//	{"keys": [vkey…], "note": "…"}                                      the note is signed by one of the keys
//	{…, "origin": "…", "index": n, "entry": base64, "proof": [base64…]}  … and its tree has the entry at n
//	{…, "origin": "…", "old": n, "old_root": base64, "proof": [base64…]} … and its tree begins with the old one
//	{…, "origin": "…", "tiles": "folder"}                                … and the folder's tiles hold it, entry by entry
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type request struct {
	Keys    []string
	Note    string
	Origin  string
	Index   *int64
	Entry   []byte
	Old     *int64
	OldRoot []byte `json:"old_root"`
	Proof   [][]byte
	Tiles   string
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := check(lines.Bytes()); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok")
		}
	}
}

func check(line []byte) error {
	var asked request
	if err := json.Unmarshal(line, &asked); err != nil {
		return err
	}
	var verifiers []note.Verifier
	for _, key := range asked.Keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return err
		}
		verifiers = append(verifiers, verifier)
	}
	opened, err := note.Open([]byte(asked.Note), note.VerifierList(verifiers...))
	if err != nil {
		return err
	}
	if asked.Index == nil && asked.Old == nil && asked.Tiles == "" {
		return nil
	}
	// tlog.ParseTree knows the origin line of Go's own checksum database alone
	parts := strings.Split(opened.Text, "\n")
	if len(parts) != 4 || parts[0] != asked.Origin || parts[3] != "" {
		return fmt.Errorf("no checkpoint of %s", asked.Origin)
	}
	size, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return err
	}
	root, err := hash(base64.StdEncoding.DecodeString(parts[2]))
	if err != nil {
		return err
	}
	if asked.Tiles != "" {
		return checkTiles(folder(asked.Tiles), tlog.Tree{N: size, Hash: root})
	}
	var proof []tlog.Hash
	for _, item := range asked.Proof {
		found, err := hash(item, nil)
		if err != nil {
			return err
		}
		proof = append(proof, found)
	}
	if asked.Index != nil {
		return tlog.CheckRecord(proof, size, root, *asked.Index, tlog.RecordHash(asked.Entry))
	}
	old, err := hash(asked.OldRoot, nil)
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, size, root, *asked.Old, old)
}

// A folder of C2SP tiles, which leave Go's height out of their paths.
type folder string

func (f folder) Height() int { return 8 }

func (f folder) SaveTiles(tiles []tlog.Tile, data [][]byte) {}

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(f.path(tile))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (f folder) path(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), "tile/8/")
	return string(f) + "/tile/" + strings.Replace(path, "data/", "entries/", 1)
}

func checkTiles(f folder, tree tlog.Tree) error {
	reader := tlog.TileHashReader(tree, f)
	for start := int64(0); start < tree.N; start += 256 {
		width := tree.N - start
		if width > 256 {
			width = 256
		}
		bundle, err := os.ReadFile(f.path(tlog.Tile{H: 8, L: -1, N: start / 256, W: int(width)}))
		if err != nil {
			return err
		}
		for index := start; index < start+width; index++ {
			if len(bundle) < 2 || len(bundle) < 2+int(bundle[0])<<8+int(bundle[1]) {
				return fmt.Errorf("entry %d is cut off", index)
			}
			end := 2 + int(bundle[0])<<8 + int(bundle[1])
			proof, err := tlog.ProveRecord(tree.N, index, reader)
			if err != nil {
				return err
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(bundle[2:end])); err != nil {
				return err
			}
			bundle = bundle[end:]
		}
	}
	return nil
}

func hash(data []byte, err error) (tlog.Hash, error) {
	var found tlog.Hash
	if err == nil && len(data) != len(found) {
		err = fmt.Errorf("a hash of %d bytes", len(data))
	}
	copy(found[:], data)
	return found, err
}
