/* Encoder of docs/specification/wire.md, "Coding of a delta". */
#include "tinyfleet/crc32.h"
#include "tinyfleet/delta_code.h"

#include "delta_format.h"

void tf_delta_encoder_begin(tf_delta_encoder *encoder, tf_delta_source source, void *context,
                            uint32_t values) {
    encoder->source = source;
    encoder->context = context;
    encoder->values_left = values;
    encoder->bits = 0;
    encoder->bit_count = 0;
    encoder->count = 0;
    encoder->position = 0;
    encoder->parameter = 0;
    encoder->code_written = 0;
}

/* Draws the next block into encoder->block; true if it holds anything but zeros. */
static bool draw_block(tf_delta_encoder *encoder) {
    uint32_t any = 0;
    uint8_t count = 0;
    while (count < TF_DELTA_BLOCK_VALUES && encoder->values_left > 0) {
        uint32_t folded = tf_delta_zigzag(encoder->source(encoder->context));
        encoder->values_left--;
        encoder->block[count++] = folded;
        any |= folded;
    }
    encoder->count = count;
    return any != 0;
}

static void put_bits(tf_delta_encoder *encoder, uint64_t bits, unsigned count) {
    encoder->bits = encoder->bits << count | bits;
    encoder->bit_count = (uint8_t)(encoder->bit_count + count);
}

/* Appends the next element of the bit stream (at most 52 bits); false at the end. Called with
 * fewer than 8 bits pending, so that 64 always hold. */
static bool put_next(tf_delta_encoder *encoder) {
    if (encoder->count == 0) {
        if (encoder->values_left == 0) {
            return false;
        }
        /* A run goes on until a block that isn't zero, 256 blocks, or the end; the block
         * that ended it is kept and written after it. */
        uint16_t run = 0;
        bool found = false;
        while (!found && run < TF_DELTA_RUN_LIMIT && encoder->values_left > 0) {
            found = draw_block(encoder);
            run = (uint16_t)(run + !found);
        }
        if (found) {
            encoder->parameter = (uint8_t)tf_delta_best_parameter(encoder->block, encoder->count);
            encoder->position = 0;
            encoder->code_written = 0;
        } else {
            encoder->count = 0;
        }
        if (run > 0) {
            put_bits(encoder, (uint64_t)TF_DELTA_RUN_CODE << 8 | (run - 1u), 12);
            return true;
        }
    }
    if (!encoder->code_written) {
        encoder->code_written = 1;
        put_bits(encoder, encoder->parameter, 4);
        return true;
    }
    uint32_t value = encoder->block[encoder->position++];
    if (encoder->position == encoder->count) {
        encoder->count = 0;
    }
    uint32_t quotient = value >> encoder->parameter;
    if (quotient >= TF_DELTA_ESCAPE) {
        put_bits(encoder, (uint64_t)((1u << TF_DELTA_ESCAPE) - 1u) << 32 | value,
                 TF_DELTA_ESCAPE + 32u);
    } else {
        uint64_t ones = (1u << quotient) - 1u;
        uint32_t low = value & ((1u << encoder->parameter) - 1u);
        put_bits(encoder, ones << (encoder->parameter + 1u) | low,
                 quotient + 1u + encoder->parameter);
    }
    return true;
}

size_t tf_delta_encoder_read(tf_delta_encoder *encoder, uint8_t *bytes, size_t capacity) {
    size_t given = 0;
    while (given < capacity) {
        if (encoder->bit_count >= 8) {
            encoder->bit_count = (uint8_t)(encoder->bit_count - 8u);
            bytes[given++] = (uint8_t)(encoder->bits >> encoder->bit_count);
        } else if (!put_next(encoder)) {
            if (encoder->bit_count == 0) {
                break;
            }
            put_bits(encoder, 0, 8u - encoder->bit_count); /* fill the last byte */
        }
    }
    return given;
}

void tf_delta_measure(tf_delta_encoder *encoder, tf_delta_source source, void *context,
                      uint32_t values, uint32_t *coded_bytes, uint32_t *coded_crc32) {
    uint8_t piece[32];
    size_t length;
    uint32_t total = 0, crc = 0;
    tf_delta_encoder_begin(encoder, source, context, values);
    do {
        length = tf_delta_encoder_read(encoder, piece, sizeof piece);
        total += (uint32_t)length;
        crc = tf_crc32(crc, piece, length);
    } while (length == sizeof piece);
    *coded_bytes = total;
    *coded_crc32 = crc;
}
