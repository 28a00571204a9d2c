// Linked is a command with one module beside ours.
package main

import "github.com/spf13/pflag"

func main() { pflag.Parse() }
