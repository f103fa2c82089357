/* Decoder of docs/specification/wire.md, "Coding of a delta": for gateways (setup.py
 * builds it for them), not linked into firmware. */
#include "tinyfleet/delta_code.h"

#include "delta_format.h"

typedef struct {
    const uint8_t *bytes;
    size_t length;
    size_t next;     /* byte */
    uint64_t window; /* bytes before it; of them are not yet taken … */
    unsigned held;   /* … the last so many bits, fewer than 8 between two calls */
    bool failed;     /* read past the end */
} bit_reader;

/* The next 0 … 32 bits. */
static uint32_t take_bits(bit_reader *reader, unsigned count) {
    while (reader->held < count) {
        if (reader->next == reader->length) {
            reader->failed = true;
            return 0;
        }
        reader->window = reader->window << 8 | reader->bytes[reader->next++];
        reader->held += 8;
    }
    reader->held -= count;
    return (uint32_t)((reader->window >> reader->held) & (((uint64_t)1 << count) - 1u));
}

/* One zigzag value; *needless_escape becomes true where one that didn't need the escape has it. */
static uint32_t take_value(bit_reader *reader, unsigned parameter, bool *needless_escape) {
    uint32_t quotient = 0;
    while (quotient < TF_DELTA_ESCAPE && take_bits(reader, 1)) {
        quotient++;
    }
    if (quotient == TF_DELTA_ESCAPE) {
        uint32_t value = take_bits(reader, 32);
        *needless_escape |= (value >> parameter) < TF_DELTA_ESCAPE;
        return value;
    }
    return quotient << parameter | take_bits(reader, parameter);
}

tf_status tf_delta_decode(const uint8_t *bytes, size_t length, int32_t *values,
                          uint32_t value_count) {
    bit_reader reader = {bytes, length, 0, 0, 0, false};
    uint32_t done = 0;
    bool run_may_follow = true; /* not after a run below the limit: it would have been one */
    while (done < value_count) {
        uint32_t left = value_count - done;
        unsigned parameter = take_bits(&reader, 4);
        if (parameter == TF_DELTA_RUN_CODE) {
            uint32_t run = take_bits(&reader, 8) + 1u;
            uint32_t blocks_left = (left + TF_DELTA_BLOCK_VALUES - 1u) / TF_DELTA_BLOCK_VALUES;
            if (reader.failed || !run_may_follow || run > blocks_left) {
                return TF_BAD_INPUT;
            }
            uint32_t zeros = run * TF_DELTA_BLOCK_VALUES;
            if (zeros > left) {
                zeros = left;
            }
            while (zeros-- > 0) {
                values[done++] = 0;
            }
            run_may_follow = run == TF_DELTA_RUN_LIMIT;
            continue;
        }
        uint32_t block[TF_DELTA_BLOCK_VALUES];
        unsigned count = left < TF_DELTA_BLOCK_VALUES ? left : TF_DELTA_BLOCK_VALUES;
        uint32_t any = 0;
        bool needless_escape = false;
        for (unsigned i = 0; i < count; i++) {
            block[i] = take_value(&reader, parameter, &needless_escape);
            any |= block[i];
        }
        if (reader.failed || needless_escape || any == 0 ||
            tf_delta_best_parameter(block, count) != parameter) {
            return TF_BAD_INPUT;
        }
        for (unsigned i = 0; i < count; i++) {
            uint32_t magnitude = block[i] >> 1;
            values[done++] = block[i] & 1u ? -(int32_t)magnitude - 1 : (int32_t)magnitude;
        }
        run_may_follow = true;
    }
    if (take_bits(&reader, reader.held) != 0) {
        return TF_BAD_INPUT;
    }
    return reader.next == length ? TF_OK : TF_BAD_INPUT;
}
