/* Gradient and update of the biases of a convolution, full or depthwise. */
#include "pairs.h"
#include "weight_update.h"

/* Channels whose errors are summed side by side. */
#define LANES 8u

#if TF_DSP

/* Both halves of a word of errors to their sums. */
static inline __attribute__((always_inline)) void add_halves(const int16_t *error, int32_t *low,
                                                             int32_t *high) {
    const uint32_t pair = tf_load32(error);
    __asm("sxtah %0, %0, %1" : "+r"(*low) : "r"(pair));
    *high += (int32_t)pair >> 16;
}

static void sum_lanes(const int16_t *error, uint32_t pixels, uint32_t channels, int32_t *sums) {
    int32_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (; pixels > 0u; pixels--, error += channels) {
        add_halves(error, &a, &b);
        add_halves(error + 2, &c, &d);
        add_halves(error + 4, &e, &f);
        add_halves(error + 6, &g, &h);
    }
    const int32_t all[LANES] = {a, b, c, d, e, f, g, h};
    memcpy(sums, all, sizeof all);
}

#else

static void sum_lanes(const int16_t *error, uint32_t pixels, uint32_t channels, int32_t *sums) {
    int32_t s[LANES] = {0};
    for (; pixels > 0u; pixels--, error += channels) {
        for (uint32_t i = 0; i < LANES; i++) {
            s[i] += error[i];
        }
    }
    memcpy(sums, s, sizeof s);
}

#endif

static int32_t sum_one(const int16_t *error, uint32_t pixels, uint32_t channels) {
    int32_t sum = 0;
    for (; pixels > 0u; pixels--, error += channels) {
        sum += *error;
    }
    return sum;
}

/* bias + move, within the limit. */
static inline int32_t moved_bias(int32_t bias, int32_t move, int32_t limit) {
#if TF_DSP
    int32_t moved;
    __asm("qadd %0, %1, %2" : "=r"(moved) : "r"(bias), "r"(move));
    return tf_clamp(moved, -limit, limit);
#else
    const int64_t moved = (int64_t)bias + move;
    return (int32_t)(moved > limit ? limit : (moved < -limit ? -limit : moved));
#endif
}

void tf_bias_update(const tf_convolution *layer, const int16_t *error, const tf_scale *scale,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update) {
    const uint32_t pixels = (uint32_t)layer->out_height * layer->out_width;
    const uint32_t channels = layer->out_channels;
    const int32_t limit = layer->bias_limit;
    const uint32_t stream = tf_update_stream(update), rate = update->learning_rate_q20;
    const int32_t exponent = scale->exponent + TF_BIAS_BITS;
    uint32_t lanes;
    for (uint32_t o = 0; o < channels; o += lanes) {
        int32_t gradients[LANES];
        lanes = channels - o < LANES ? 1u : LANES;
        if (lanes == LANES) {
            sum_lanes(error + o, pixels, channels, gradients);
        } else {
            gradients[0] = sum_one(error + o, pixels, channels);
        }
        for (uint32_t i = 0; i < lanes; i++) {
            const uint32_t at = o + i;
            const tf_step step = tf_make_step(layer->bias_gain[at], rate, exponent);
            int32_t *velocity = of_bias->velocity == NULL ? NULL : &of_bias->velocity[at];
            const int32_t move = tf_move_quickly(gradients[i], step, velocity, update, TF_BIAS_BITS,
                                                 stream, of_bias->first_value + at);
            bias[at] = moved_bias(bias[at], move, limit);
        }
    }
}
