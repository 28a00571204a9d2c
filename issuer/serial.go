package issuer

import (
	"encoding/hex"
	"math/big"
)

// Serial is the serial number of a certificate as Signet says it everywhere: lower-case hexadecimal of whole bytes, as
// OpenSSL has it, so that a text of the log is found in the ledger.
func Serial(number *big.Int) string {
	if number == nil || number.Sign() == 0 {
		return "00"
	}
	return hex.EncodeToString(number.Bytes())
}
