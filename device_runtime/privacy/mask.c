/* Values → clipped → with noise → masked, and the sealed seeds in front of them. */
#include "tinyfleet/mask.h"

#include <string.h>

#include "clip.h"
#include "digest.h"
#include "tinyfleet/crc32.h"

#define SMALLEST_VARIANCE 4u /* below it the variance isn't what it says */

bool tf_mask_is_sound(const tf_task *task) {
    const uint32_t bits = task->mask_bits;
    const uint32_t variance = task->noise_variance;
    return bits >= 8u && bits <= 32u && bits % 8u == 0u && task->value_bound != 0u &&
           (variance == 0u ||
            (variance >= SMALLEST_VARIANCE && variance <= TF_NOISE_LARGEST_VARIANCE)) &&
           (task->norm_share == 0u || (task->clip != 0u && task->norm_share <= task->value_bound));
}

static void draw(const tf_keys *keys, const char *domain, const uint8_t *nonce,
                 const uint8_t *unmasker, uint8_t *key) {
    tf_digest digest;
    tf_digest_begin(&digest, domain);
    tf_digest_add(&digest, keys->device, TF_KEY_BYTES); /* the exchange key */
    tf_digest_add(&digest, nonce, TF_NONCE_BYTES);
    tf_digest_add(&digest, unmasker, unmasker == NULL ? 0u : TF_KEY_BYTES);
    tf_digest_end(&digest, key);
}

/* What the seals are bound to. */
static void bind(const tf_task *task, const tf_identity *identity, uint32_t values,
                 uint8_t *bound) {
    tf_digest digest;
    tf_digest_begin(&digest, "tinyfleet-mask/1");
    tf_digest_add_name(&digest, identity->fleet);
    tf_digest_add_name(&digest, identity->device);
    tf_digest_add(&digest, task->campaign, TF_CAMPAIGN_BYTES);
    tf_digest_add(&digest, task->plan, TF_DIGEST_BYTES);
    tf_digest_add(&digest, task->weights, TF_DIGEST_BYTES);
    tf_digest_add_number(&digest, task->round, 4u);
    tf_digest_add_number(&digest, values, 4u);
    tf_digest_add_number(&digest, task->mask_bits, 1u);
    tf_digest_add_number(&digest, task->value_bound, 2u);
    tf_digest_add_number(&digest, task->clip, 4u);
    tf_digest_add_number(&digest, task->norm_share, 2u);
    tf_digest_add_number(&digest, task->noise_variance, 4u);
    tf_digest_add_number(&digest, task->least_devices, 2u);
    tf_digest_end(&digest, bound);
}

/* ChaCha20-Poly1305 of RFC 8439. */
static void seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *bound,
                 const uint8_t *seed, uint8_t *sealed) {
    crypto_aead_ctx context;
    crypto_aead_init_ietf(&context, key, nonce);
    crypto_aead_write(&context, sealed, sealed + TF_KEY_BYTES, bound, 32u, seed, TF_KEY_BYTES);
    crypto_wipe(&context, sizeof context);
}

void tf_mask_open(tf_mask_encoder *encoder, const tf_mask_source *source, const tf_task *task,
                  const tf_keys *keys, const uint8_t nonce[TF_NONCE_BYTES]) {
    uint8_t bound[32];
    memset(encoder, 0, sizeof *encoder);
    encoder->source = *source;
    encoder->values = source->values + (task->norm_share != 0u ? 1u : 0u);
    encoder->seed = task->seed;
    encoder->bound = task->value_bound;
    encoder->variance = task->noise_variance;
    encoder->width = task->mask_bits / 8u;
    encoder->unmaskers = (uint8_t)tf_keys_unmaskers(keys);
    encoder->head_bytes = (uint8_t)(TF_NONCE_BYTES + TF_SEAL_BYTES * encoder->unmaskers);
    memcpy(encoder->head, nonce, TF_NONCE_BYTES);
    bind(task, keys->identity, encoder->values, bound);
    for (uint32_t i = 0; i < encoder->unmaskers; i++) {
        draw(keys, "tinyfleet-seed/1", nonce, tf_keys_unmasker(keys, i), encoder->seeds[i]);
        seal(keys->seal_keys[i], nonce, bound, encoder->seeds[i],
             encoder->head + TF_NONCE_BYTES + TF_SEAL_BYTES * i);
    }
    draw(keys, "tinyfleet-noise/1", nonce, NULL, encoder->noise_key);
}

/* --- a pass --------------------------------------------------------------------------------- */

void tf_mask_encoder_begin(tf_mask_encoder *encoder) {
    encoder->position = 0;
    encoder->index = 0;
    encoder->counter = 0;
    encoder->stream_position = TF_MASK_STREAM_BYTES;
    encoder->value_left = 0;
    tf_noise_begin(&encoder->noise, encoder->noise_key, encoder->variance);
    encoder->source.rewind(encoder->source.context);
}

static int32_t bounded(const tf_mask_encoder *encoder, int32_t value) {
    return value > encoder->bound ? encoder->bound
                                  : (value < -encoder->bound ? -encoder->bound : value);
}

/* The next value before noise. */
static int32_t clipped(tf_mask_encoder *encoder) {
    const uint32_t index = encoder->index;
    if (index == encoder->source.values) {
        return encoder->share;
    }
    const int32_t value = bounded(encoder, encoder->source.next(encoder->source.context));
    return tf_clip_value(&encoder->clip, encoder->seed, index, value);
}

/* Little-endian number of encoder->width bytes. */
static uint32_t number_at(const tf_mask_encoder *encoder, const uint8_t *bytes) {
    uint32_t number = 0;
    for (uint32_t i = encoder->width; i-- > 0u;) {
        number = (number << 8) | bytes[i];
    }
    return number;
}

static void add_stream(tf_mask_encoder *encoder, const uint8_t *stream) {
    for (uint32_t at = 0; at < TF_MASK_STREAM_BYTES; at += encoder->width) {
        const uint32_t sum =
            number_at(encoder, encoder->stream + at) + number_at(encoder, stream + at);
        for (uint32_t i = 0; i < encoder->width; i++) {
            encoder->stream[at + i] = (uint8_t)(sum >> (8u * i));
        }
    }
}

/* The next piece of the sum of all streams. */
static void refill(tf_mask_encoder *encoder) {
    static const uint8_t nonce[TF_NONCE_BYTES] = {0};
    const uint32_t counter = encoder->counter;
    encoder->counter = crypto_chacha20_ietf(encoder->stream, NULL, TF_MASK_STREAM_BYTES,
                                            encoder->seeds[0], nonce, counter);
    for (uint32_t i = 1; i < encoder->unmaskers; i++) {
        uint8_t stream[TF_MASK_STREAM_BYTES];
        (void)crypto_chacha20_ietf(stream, NULL, sizeof stream, encoder->seeds[i], nonce, counter);
        add_stream(encoder, stream);
    }
    encoder->stream_position = 0;
}

/* A value before noise → as it is sent; its lowest `width` bytes count. */
static uint32_t masked(tf_mask_encoder *encoder, int32_t value) {
    uint32_t sum = (uint32_t)value;
    if (encoder->variance != 0u) {
        sum += (uint32_t)tf_noise_next(&encoder->noise);
    }
    if (encoder->stream_position == TF_MASK_STREAM_BYTES) {
        refill(encoder);
    }
    sum += number_at(encoder, encoder->stream + encoder->stream_position);
    encoder->stream_position = (uint8_t)(encoder->stream_position + encoder->width);
    encoder->index++;
    return sum;
}

static size_t read_bytes(tf_mask_encoder *encoder, uint8_t *bytes, size_t capacity) {
    size_t count = 0;
    while (count < capacity) {
        if (encoder->position < encoder->head_bytes) {
            bytes[count++] = encoder->head[encoder->position++];
            continue;
        }
        if (encoder->value_left == 0u) {
            if (encoder->index == encoder->values) {
                break;
            }
            encoder->value = masked(encoder, clipped(encoder));
            encoder->value_left = encoder->width;
        }
        bytes[count++] = (uint8_t)encoder->value;
        encoder->value >>= 8;
        encoder->value_left--;
    }
    return count;
}

size_t tf_mask_encoder_read(tf_mask_encoder *encoder, uint8_t *bytes, size_t capacity) {
    return read_bytes(encoder, bytes, capacity);
}

/* --- what comes before the first ------------------------------------------------------------ */

/* The sum of the squares of what was learned, with the clip as it is; at least as soon as it is
 * beyond `limit`. Neither noise nor masks are drawn for it. */
static uint64_t sum_of_squares(tf_mask_encoder *encoder, uint64_t limit) {
    uint64_t squares = 0;
    encoder->source.rewind(encoder->source.context);
    for (encoder->index = 0; encoder->index < encoder->source.values && squares <= limit;
         encoder->index++) {
        const int64_t value = clipped(encoder);
        squares += (uint64_t)(value * value);
    }
    return squares;
}

/* Finds the clip with which the values are within the task's. */
static void choose_clip(tf_mask_encoder *encoder, const tf_task *task) {
    const uint64_t limit = (uint64_t)task->clip * task->clip;
    const tf_clip none = {false, false, 0, 0};
    encoder->clip = none;
    encoder->share = task->norm_share;
    if (task->clip == 0u) {
        return;
    }
    const uint64_t squares = sum_of_squares(encoder, UINT64_MAX);
    if (squares <= limit) {
        return;
    }
    const tf_clip first = tf_clip_first(task->clip, squares);
    encoder->clip = first;
    encoder->share = 0;
    for (uint32_t attempt = 1; sum_of_squares(encoder, limit) > limit; attempt++) {
        encoder->clip = tf_clip_next(encoder->clip, first, attempt);
    }
}

void tf_mask_measure(tf_mask_encoder *encoder, const tf_task *task, uint32_t *coded_bytes,
                     uint32_t *coded_crc32) {
    uint8_t bytes[32];
    size_t count;
    choose_clip(encoder, task);
    tf_mask_encoder_begin(encoder);
    *coded_bytes = 0;
    *coded_crc32 = 0;
    while ((count = read_bytes(encoder, bytes, sizeof bytes)) > 0u) {
        *coded_bytes += (uint32_t)count;
        *coded_crc32 = tf_crc32(*coded_crc32, bytes, count);
    }
}
