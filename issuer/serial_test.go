package issuer

import (
	"math/big"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSerial(t *testing.T) {
	for number, want := range map[int64]string{0: "00", 1: "01", 0xabc: "0abc", 0x1234: "1234"} {
		assert.Equal(t, want, Serial(big.NewInt(number)))
	}
	assert.Equal(t, "00", Serial(nil))
}
