/* Blocks with vectors: 16 products of bytes, or eight of 16 bits, to an instruction.
 *
 * Columns of a forward pass hold codes as they are, so that bytes of a column meet bytes of a row; the
 * zero point times the sum of the row is taken out of what sums start with. Sums wrap around, so their
 * order doesn't matter. The core adds up into general registers: no more than six sums at a time find
 * room.
 */
#include "block.h"

#if TF_MVE

#define LANES 4u

void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length) {
    int8_t *first = (int8_t *)pair, *second = first + length;
    __asm volatile("wls lr, %[vectors], 2f\n"
                   "1:\n\t"
                   "vld20.8 {q0, q1}, [%[packed]]\n\t"
                   "vld21.8 {q0, q1}, [%[packed]]!\n\t"
                   "vstrb.8 q0, [%[first]], #16\n\t"
                   "vstrb.8 q1, [%[second]], #16\n\t"
                   "le lr, 1b\n"
                   "2:\n\t"
                   "wlstp.16 lr, %[rest], 4f\n"
                   "3:\n\t"
                   "vldrh.u16 q0, [%[packed]], #16\n\t"
                   "vstrb.16 q0, [%[first]], #8\n\t"
                   "vshr.u16 q0, q0, #8\n\t"
                   "vstrb.16 q0, [%[second]], #8\n\t"
                   "letp lr, 3b\n"
                   "4:"
                   : [packed] "+&r"(packed), [first] "+&l"(first), [second] "+&l"(second)
                   : [vectors] "r"(length / 16u), [rest] "r"(length % 16u)
                   : "q0", "q1", "lr", "cc", "memory");
}

void tf_block_widen_columns(int16_t *pair, const int8_t *packed, uint32_t step, uint32_t count) {
    const uint32_t length = tf_packed_length(count);
    int16_t *second = pair + length;
    if (count < length) {
        tf_store32(pair + count, 0);
        tf_store32(second + count, 0);
    }
    if (3u * step >= UINT16_MAX) {
        /* They lie too far apart for offsets of 16 bits. */
        for (uint32_t i = 0; i < count; i += 2u, packed += step) {
            pair[i] = packed[0];
            pair[i + 1u] = packed[1];
            second[i] = packed[2];
            second[i + 1u] = packed[3];
        }
        return;
    }
    /* Places of a value in eight rows. */
    const uint16x8_t lane = vidupq_n_u16(0u, 1);
    const uint16x8_t places = vaddq_u16(vandq_u16(lane, vdupq_n_u16(1u)),
                                        vmulq_n_u16(vshrq_n_u16(lane, 1), (uint16_t)step));
    const int8_t *next = packed + 2;
    __asm volatile(
        "dlstp.16 lr, %[count]\n"
        "1:\n\t"
        "vldrb.s16 q0, [%[packed], %q[places]]\n\t"
        "vldrb.s16 q1, [%[next], %q[places]]\n\t"
        "vstrh.16 q0, [%[pair]], #16\n\t"
        "vstrh.16 q1, [%[second]], #16\n\t"
        "add %[packed], %[packed], %[step]\n\t"
        "add %[next], %[next], %[step]\n\t"
        "letp lr, 1b"
        : [packed] "+&r"(packed), [next] "+&r"(next), [pair] "+&l"(pair), [second] "+&l"(second)
        : [count] "r"(count), [step] "r"(4u * step), [places] "w"(places)
        : "q0", "q1", "lr", "cc", "memory");
}

/* What a run of blocks works on. In assembly, since compilers spend more instructions around loops
 * than there are in them; the numbers in brackets there are offsets of these fields. */
typedef struct {
    int32_t start[2];     /* 0: of the sums of both rows */
    int32_t pre_shift[2]; /* 8 */
    int32_t first[2];     /* 16: offset and, negative, shift. Errors: largest so far, and shift */
    int32_t second[2];    /* 24 */
    uint32_t after, each; /* 32: addresses of code */
    uint32_t step;        /* 40: from a block's output to the next one's */
    const int8_t *end;    /* 44: of the output */
    uint32_t *bits;       /* 48 */
    uint32_t whole;       /* 52: bytes of a row in whole vectors */
    uint32_t next;        /* 56: from there to the next two columns. Errors: values of a row */
    uint32_t length;      /* 60: bytes of a row */
    int32_t words[2][LANES];   /* 64: multipliers */
    uint32_t places[2][LANES]; /* 96: of pixels 0, 2, 1, 3 of both rows in the output */
    uint32_t bit_of[LANES];    /* 128: of the first row, in the word of a block's mask */
} block_loop;

TF_AT(block_loop, first, 16);
TF_AT(block_loop, after, 32);
TF_AT(block_loop, bits, 48);
TF_AT(block_loop, words, 64);
TF_AT(block_loop, places, 96);
TF_AT(block_loop, bit_of, 128);

/* Sums of two pixels with the first row to two lanes of q4, with the second row to those of q5.
 * r0, r1: columns; r2, r3: rows; r5: bytes of each. */
#define SUM_TWO(bits, load, count, lane0, lane1, next)                                          \
    "ldrd r4, r6, [r12]\n\t"                                                                    \
    "ldrd r8, r10, [r12]\n\t"                                                                   \
    "add r1, r0, r5\n\t"                                                                        \
    "dlstp." bits " lr, " count "\n"                                                            \
    "2:\n\t" load " q0, [r2], #16\n\t" load " q1, [r3], #16\n\t" load " q2, [r0], #16\n\t" load \
    " q3, [r1], #16\n\t"                                                                        \
    "vmladava.s" bits " r4, q2, q0\n\t"                                                         \
    "vmladava.s" bits " r6, q2, q1\n\t"                                                         \
    "vmladava.s" bits " r8, q3, q0\n\t"                                                         \
    "vmladava.s" bits " r10, q3, q1\n\t"                                                        \
    "letp lr, 2b\n\t"                                                                           \
    "vmov q4[" lane1 "], q4[" lane0 "], r4, r8\n\t"                                             \
    "vmov q5[" lane1 "], q5[" lane0 "], r6, r10\n\t"                                            \
    "sub r2, r2, r9\n\t"                                                                        \
    "sub r3, r3, r9\n\t" next

#define ENTER                      \
    "push {r4-r11, lr}\n\t"        \
    "vpush {d8-d15}\n\t"           \
    "mov r12, r0\n\t"              \
    "mov r0, r1\n\t"               \
    "ldr r11, [sp, #100]\n\t"      \
    "ldr r5, [r12, #60]\n\t"       \
    "ldrd r9, r7, [r12, #52]\n\t"  \
    "vldrw.u32 q6, [r12, #96]\n\t" \
    "vldrw.u32 q7, [r12, #112]\n\t"

#define LEAVE           \
    "vpop {d8-d15}\n\t" \
    "pop {r4-r11, pc}\n\t"

#define NEXT_BLOCK                \
    "ldrd r4, r6, [r12, #40]\n\t" \
    "add r11, r11, r4\n\t"        \
    "cmp r11, r6\n\t"

/* The codes of four pixels before the clamp. */
#define REQUANTIZE(sums, at, words)        \
    "vldrw.u32 q0, [r12, #" words "]\n\t"  \
    "ldrd r4, r6, [r12, #" at "]\n\t"      \
    "vmulh.s32 " sums ", " sums ", q0\n\t" \
    "vadd.i32 " sums ", " sums ", r4\n\t"  \
    "vshl.s32 " sums ", r6\n\t"

/* Those clamped, to `places`, and the bits q3 of those that the clamp leaves alone
 * added to r8. */
#define STORE_MARKED(codes, places)      \
    "vmin.s32 q2, " codes ", q0\n\t"     \
    "vmax.s32 q2, q2, q1\n\t"            \
    "vstrb.32 q2, [r11, " places "]\n\t" \
    "vpt.i32 eq, q2, " codes "\n\t"      \
    "vaddvat.u32 r8, q3\n\t"

/* Sums of a pixel with two rows, q2 and q3, of a single vector each. */
#define SUM_SHORT(sum0, sum1)         \
    "vldrb.u8 q0, [r0]\n\t"           \
    "add r0, r0, r5\n\t"              \
    "vmladav.s8 " sum0 ", q0, q2\n\t" \
    "vmladav.s8 " sum1 ", q0, q3\n\t"

/* Not static, or compilers drop arguments that no C reads. */
void tf_block_loop_codes(block_loop *loop, const void *columns, const void *first,
                         const void *second, void *output);
void tf_block_loop_errors(block_loop *loop, const void *columns, const void *first,
                          const void *second, void *output);

/* clang-format off */
__attribute__((naked)) void
tf_block_loop_codes(block_loop *loop __attribute__((unused)), const void *columns __attribute__((unused)),
           const void *first __attribute__((unused)), const void *second __attribute__((unused)),
           void *output __attribute__((unused))) {
    __asm volatile(
        ENTER
        "cmp r5, #16\n\t"
        "bhi 1f\n\t"

        "6:\n\t" /* rows of a single vector each */
        "vctp.8 r5\n\t"
        "vpstt\n\t"
        "vldrbt.u8 q2, [r2]\n\t"
        "vldrbt.u8 q3, [r3]\n\t"
        "7:\n\t"
        SUM_SHORT("r4", "r6") SUM_SHORT("r8", "r10")
        "vmov q4[2], q4[0], r4, r8\n\t"
        "vmov q5[2], q5[0], r6, r10\n\t"
        SUM_SHORT("r4", "r6") SUM_SHORT("r8", "r10")
        "vmov q4[3], q4[1], r4, r8\n\t"
        "vmov q5[3], q5[1], r6, r10\n\t"
        "ldrd r4, r6, [r12]\n\t"
        "vadd.i32 q4, q4, r4\n\t"
        "vadd.i32 q5, q5, r6\n\t"
        "ldr pc, [r12, #32]\n\t"

        "1:\n\t" /* a block */
        SUM_TWO("8", "vldrb.u8", "r5", "0", "2", "add r0, r0, r7\n\t")
        SUM_TWO("8", "vldrb.u8", "r5", "1", "3", "add r0, r0, r7\n\t")
        "ldr pc, [r12, #32]\n\t"

        "tf_block_mve_raise:\n\t"
        "ldrd r4, r6, [r12, #8]\n\t"
        "vqshl.s32 q4, r4\n\t"
        "vqshl.s32 q5, r6\n\t"
        "ldr pc, [r12, #36]\n\t"

        "tf_block_mve_codes:\n\t"
        REQUANTIZE("q4", "16", "64")
        "vqmovnb.s32 q4, q4\n\t"
        "vqmovnb.s16 q4, q4\n\t"
        "vstrb.32 q4, [r11, q6]\n\t"
        REQUANTIZE("q5", "24", "80")
        "vqmovnb.s32 q5, q5\n\t"
        "vqmovnb.s16 q5, q5\n\t"
        "vstrb.32 q5, [r11, q7]\n\t"
        NEXT_BLOCK
        "beq 3f\n\t"
        "cmp r5, #16\n\t"
        "bhi 1b\n\t"
        "b 7b\n\t"

        "tf_block_mve_codes_and_mask:\n\t"
        REQUANTIZE("q4", "16", "64")
        REQUANTIZE("q5", "24", "80")
        "ldr r10, [r12, #48]\n\t"
        "ldr r8, [r10]\n\t"
        "lsr r8, r8, #2\n\t"
        "and r8, r8, #0x3f3f3f3f\n\t"
        "vldrw.u32 q3, [r12, #128]\n\t"
        "vmov.i32 q0, #127\n\t"
        "vmvn.i32 q1, #127\n\t"
        STORE_MARKED("q4", "q6")
        "vadd.i32 q3, q3, q3\n\t"
        STORE_MARKED("q5", "q7")
        "str r8, [r10], #4\n\t"
        "str r10, [r12, #48]\n\t"
        NEXT_BLOCK
        "beq 3f\n\t"
        "cmp r5, #16\n\t"
        "bhi 1b\n\t"
        "b 6b\n\t"
        "3:\n\t"
        LEAVE);
}

__attribute__((naked)) void
tf_block_loop_errors(block_loop *loop __attribute__((unused)), const void *columns __attribute__((unused)),
            const void *first __attribute__((unused)), const void *second __attribute__((unused)),
            void *output __attribute__((unused))) {
    __asm volatile(
        ENTER
        "1:\n\t"
        SUM_TWO("16", "vldrh.u16", "r7", "0", "2", "sub r1, r1, r9\n\tadd r0, r1, r5\n\t")
        SUM_TWO("16", "vldrh.u16", "r7", "1", "3", "sub r1, r1, r9\n\tadd r0, r1, r5\n\t")
        "ldrd r4, r6, [r12, #16]\n\t"
        "vshl.s32 q4, r6\n\t"
        "vshl.s32 q5, r6\n\t"
        "vqmovnb.s32 q4, q4\n\t"
        "vqmovnt.s32 q4, q5\n\t"
        "vqmovnb.s32 q5, q5\n\t"
        "vmaxav.s16 r4, q4\n\t"
        "vstrh.32 q4, [r11, q6]\n\t"
        "vstrh.32 q5, [r11, q7]\n\t"
        "str r4, [r12, #16]\n\t"
        NEXT_BLOCK
        "bne 1b\n\t"
        LEAVE);
}
/* clang-format on */

extern const uint8_t tf_block_mve_raise[], tf_block_mve_codes[], tf_block_mve_codes_and_mask[];

static uint32_t address_of(const uint8_t *label) {
    return (uint32_t)label | 1u;
}

/* What both kinds of loops have in common; `bytes`: of a row. */
static inline void fill_loop(block_loop *loop, const tf_block_run *run, uint32_t bytes) {
    static const uint32_t pixels[LANES] = {0, 2, 1, 3};
    const uint32x4_t places = vmulq_n_u32(vldrwq_u32(pixels), run->step);
    vstrwq_u32(loop->places[0], places);
    vstrwq_u32(loop->places[1], vaddq_n_u32(places, bytes / run->length));
    loop->step = TF_BLOCK_PIXELS * run->step;
    loop->end = (const int8_t *)run->output + run->blocks * loop->step;
    loop->length = bytes;
    loop->whole = (bytes + 15u) & ~15u;
}

/* Sums of the rows of codes. */
static inline void sum_rows(const tf_block_run *run, int32_t sums[2]) {
    const int8_t *first = (const int8_t *)run->pair, *second = first + run->length;
    int32_t a = 0, b = 0;
    __asm("dlstp.8 lr, %[count]\n"
          "1:\n\t"
          "vldrb.u8 q0, [%[first]], #16\n\t"
          "vldrb.u8 q1, [%[second]], #16\n\t"
          "vaddva.s8 %[a], q0\n\t"
          "vaddva.s8 %[b], q1\n\t"
          "letp lr, 1b"
          : [a] "+&Te"(a), [b] "+&Te"(b), [first] "+&r"(first), [second] "+&r"(second)
          : [count] "r"(run->length)
          : "q0", "q1", "lr", "cc", "memory");
    sums[0] = a;
    sums[1] = b;
}

static void run_codes(tf_block_run *run) {
    static const uint32_t bit_of[LANES] = {0x40, 0x400000, 0x4000, 0x40000000};
    const int8_t *pair = (const int8_t *)run->pair;
    block_loop loop;
    fill_loop(&loop, run, run->length);
    loop.next = 2u * run->length - loop.whole;
    sum_rows(run, loop.start);
    for (uint32_t row = 0; row < 2u; row++) {
        const tf_requantizer *by = row == 0 ? &run->first : &run->second;
        int32_t *to = row == 0 ? loop.first : loop.second;
        loop.start[row] = run->start[row] - run->in_zero * loop.start[row];
        loop.pre_shift[row] = (int32_t)run->pre_shift[row];
        to[0] = by->offset;
        to[1] = -by->shift;
        vstrwq_s32(loop.words[row], vdupq_n_s32(by->word));
    }
    loop.each =
        address_of(run->kind == TF_RUN_CODES ? tf_block_mve_codes : tf_block_mve_codes_and_mask);
    loop.after = run->raised == NULL ? loop.each : address_of(tf_block_mve_raise);
    loop.bits = run->bits;
    vstrwq_u32(loop.bit_of, vldrwq_u32(bit_of));
    tf_block_loop_codes(&loop, run->columns, pair, pair + run->length, run->output);
}

static void run_errors(tf_block_run *run) {
    block_loop loop;
    fill_loop(&loop, run, 2u * run->length);
    loop.next = run->length; /* the loop's count */
    loop.start[0] = run->start[0];
    loop.start[1] = run->start[1];
    loop.first[0] = run->first.word;
    loop.first[1] = -run->first.shift;
    tf_block_loop_errors(&loop, run->columns, run->pair, run->pair + run->length, run->output);
    run->first.word = loop.first[0];
}

void tf_block_run_all(tf_block_run *run) {
    if (run->kind == TF_RUN_ERRORS) {
        run_errors(run);
    } else {
        run_codes(run);
    }
}

/* Sums of a column with both rows. */
#define ADD_PRODUCTS(bits, load)                                                                   \
    __asm(                                                                                         \
        "dlstp." bits " lr, %[count]\n"                                                            \
        "1:\n\t" load " q0, [%[first]], #16\n\t" load " q1, [%[second]], #16\n\t" load             \
        " q2, [%[x]], #16\n\t"                                                                     \
        "vmladava.s" bits " %[a], q2, q0\n\t"                                                      \
        "vmladava.s" bits " %[b], q2, q1\n\t"                                                      \
        "letp lr, 1b"                                                                              \
        : [a] "+&Te"(a), [b] "+&Te"(b), [x] "+&r"(x), [first] "+&r"(first), [second] "+&r"(second) \
        : [count] "r"(run->length)                                                                 \
        : "q0", "q1", "q2", "lr", "cc", "memory")

void tf_block_single(const tf_block_run *run, const void *columns, uint32_t pixel,
                     int32_t sums[2]) {
    const uint32_t bytes = run->kind == TF_RUN_ERRORS ? 2u * run->length : run->length;
    const int8_t *first = (const int8_t *)run->pair, *second = first + bytes;
    const int8_t *x = (const int8_t *)columns + pixel * bytes;
    int32_t a = run->start[0], b = run->start[1];
    if (run->kind == TF_RUN_ERRORS) {
        ADD_PRODUCTS("16", "vldrh.u16");
    } else {
        int32_t rows[2];
        sum_rows(run, rows);
        a -= run->in_zero * rows[0];
        b -= run->in_zero * rows[1];
        ADD_PRODUCTS("8", "vldrb.u8");
    }
    sums[0] = a;
    sums[1] = b;
}

void tf_block_scale(const int16_t *error, const int16_t *multiplier, uint32_t count, int32_t shift,
                    int16_t *to) {
    for (; count >= 8u; count -= 8u, error += 8, multiplier += 8, to += 8) {
        const int16x8_t e = vldrhq_s16(error), m = vldrhq_s16(multiplier);
        const int32x4_t even = vrshlq_n_s32(vmullbq_int_s16(e, m), -shift);
        const int32x4_t odd = vrshlq_n_s32(vmulltq_int_s16(e, m), -shift);
        vstrhq_s16(to, vmovntq_s32(vmovnbq_s32(e, even), odd));
    }
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)tf_round_shift32(error[i] * multiplier[i], shift);
    }
}

/* sums[p] += the weights at `weights` of one input channel, for `outputs` output channels, times
 * the errors of pixel p. */
static inline __attribute__((always_inline)) void add_tap(const int16_t *errors,
                                                          const int8_t *weights, uint32_t outputs,
                                                          uint16x8_t places, uint32_t step,
                                                          int32_t sums[TF_BLOCK_PIXELS]) {
    const int16_t *e0 = errors, *e1 = e0 + outputs, *e2 = e1 + outputs, *e3 = e2 + outputs;
    int32_t a = sums[0], b = sums[1], c = sums[2], d = sums[3];
    for (uint32_t vectors = outputs / 8u; vectors > 0u; vectors--) {
        const int16x8_t w = vldrbq_gather_offset_s16(weights, places);
        a = vmladavaq_s16(a, vldrhq_s16(e0), w);
        b = vmladavaq_s16(b, vldrhq_s16(e1), w);
        c = vmladavaq_s16(c, vldrhq_s16(e2), w);
        d = vmladavaq_s16(d, vldrhq_s16(e3), w);
        weights += step;
        e0 += 8, e1 += 8, e2 += 8, e3 += 8;
    }
    if ((outputs & 7u) != 0u) {
        const mve_pred16_t some = vctp16q(outputs & 7u);
        const int16x8_t w = vldrbq_gather_offset_z_s16(weights, places, some);
        a = vmladavaq_s16(a, vldrhq_z_s16(e0, some), w);
        b = vmladavaq_s16(b, vldrhq_z_s16(e1, some), w);
        c = vmladavaq_s16(c, vldrhq_z_s16(e2, some), w);
        d = vmladavaq_s16(d, vldrhq_z_s16(e3, some), w);
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

/* The same for rows that lie too far apart for offsets of 16 bits. */
static void add_wide_tap(const int16_t *errors, const int8_t *weights, uint32_t outputs,
                         uint32_t row_bytes, int32_t sums[TF_BLOCK_PIXELS]) {
    for (uint32_t o = 0; o < outputs; o += 2u, weights += row_bytes, errors += 2) {
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            const int16_t *pair = errors + p * outputs;
            sums[p] += pair[0] * weights[0] + pair[1] * weights[1];
        }
    }
}

static void sum_channel(const tf_gradient_block *block, const int8_t *weights, uint16x8_t places,
                        int32_t sums[TF_BLOCK_PIXELS]) {
    const uint16_t *tap = block->taps;
    const uint32_t tap_elements = block->outputs / 2u * TF_STREAM_STEP;
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        sums[p] = block->half;
    }
    for (const int16_t *from = block->stream; from != block->stream_end; from += tap_elements) {
        const int8_t *of_tap = weights + *tap++ * block->tap_bytes;
        if (3u * block->row_bytes < UINT16_MAX) {
            add_tap(from, of_tap, block->outputs, places, 4u * block->row_bytes, sums);
        } else {
            add_wide_tap(from, of_tap, block->outputs, block->row_bytes, sums);
        }
    }
}

void tf_block_gradient(tf_gradient_block *block) {
    /* Places of the weights that eight output channels have for an input channel: in four rows. */
    const uint32_t row = block->row_bytes;
    const uint16x8_t lane = vidupq_n_u16(0u, 1);
    const uint16x8_t places = vaddq_u16(vandq_u16(lane, vdupq_n_u16(1u)),
                                        vmulq_n_u16(vshrq_n_u16(lane, 1), (uint16_t)row));
    const int32x4_t lowest = vdupq_n_s32(INT16_MIN), highest = vdupq_n_s32(INT16_MAX);
    int16_t *output = block->output;
    for (const int8_t *weights = block->weights; weights != block->weights_end;) {
        const uint32_t rest = (uint32_t)(block->weights_end - weights) / 2u;
        const uint32_t count = rest < LANES ? rest : LANES;
        const mve_pred16_t some = vctp32q(count);
        int32_t sums[LANES][TF_BLOCK_PIXELS];
        for (uint32_t i = 0; i < count; i++, weights += 2) {
            sum_channel(block, weights, places, sums[i]);
        }
        const uint32x4_t column = vidupq_n_u32(0u, TF_BLOCK_PIXELS);
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            int16_t *to = output + (p == 0 ? 0 : block->steps[p - 1u] / 2);
            const int32x4_t sum = vldrwq_gather_shifted_offset_z_s32(&sums[0][p], column, some);
            const int32x4_t value = vshlq_r_s32(sum, -block->shift);
            const int32x4_t error = vminq_s32(vmaxq_s32(value, lowest), highest);
            vstrhq_p_s32(to, error, some);
            block->largest = vmaxavq_p_s32(block->largest, error, some);
        }
        output += count;
    }
}

#endif
