/* Kernels that slide along rows of a plane: the inner loops of depthwise convolutions.
 *
 * With DSP instructions they are written in assembler, since there are more values in flight than
 * a compiler keeps in registers. All of them make four outputs at a time in r4 … r7. Others:
 *
 *     r0  plane, first row, first column of the block     r1  the same in the row at hand
 *     r2  taps of the row at hand                         r3  rows to go
 *     r8, r9, r10  words of the plane                     r11, r12  pairs of taps
 *     lr  bytes of a row of the plane
 *
 * and on the stack (84 bytes in all):
 *
 *     0   r0, where it has to make room                   4   where the next sums go, 8 the row's end
 *     12  first row of taps, number of rows               20  what sums start with, twice
 *     28  next window, end of the windows                 36  plane, table, bytes of a row of sums
 */
#include "planes.h"

#if TF_DSP

TF_AT(tf_slide_rows, row_bytes, 16);
TF_AT(tf_slide_rows, sums, 28);
TF_AT(tf_window, rows, 8);

/* The fields of tf_slide_rows go to the stack. */
#define ENTER                  \
    "push {r4-r11, lr}\n"      \
    "ldm r0, {r1-r8}\n"        \
    "sub sp, #48\n"            \
    "add r9, sp, #28\n"        \
    "stm r9, {r1-r5}\n"        \
    "strd r6, r6, [sp, #20]\n" \
    "str r8, [sp, #8]\n"       \
    "mov lr, r7\n"

/* Leaves the plane in r0, taps in r10, the number of rows in r11. */
#define NEXT_WINDOW              \
    "5: ldr r8, [sp, #28]\n"     \
    "ldm r8!, {r9, r10, r11}\n"  \
    "str r8, [sp, #28]\n"        \
    "ldrd r4, r5, [sp, #36]\n"   \
    "add r0, r4, r9, lsl #1\n"   \
    "add r10, r5, r10, lsl #1\n" \
    "strd r10, r11, [sp, #12]\n" \
    "ldr r8, [sp, #8]\n"         \
    "ldr r9, [sp, #44]\n"        \
    "add r9, r8\n"               \
    "strd r8, r9, [sp, #4]\n"

/* Windows without a row leave nothing but the start. */
#define UNLESS_EMPTY \
    "cmp r11, #0\n"  \
    "beq 7f\n"

#define NEXT_BLOCK(bytes)         \
    "1: ldrd r2, r3, [sp, #12]\n" \
    "mov r1, r0\n"                \
    "add r0, #" #bytes "\n"       \
    "ldrd r4, r5, [sp, #20]\n"    \
    "ldrd r6, r7, [sp, #20]\n"

/* For loops that need r0. */
#define NEXT_BLOCK_FROM_STACK(bytes) \
    "str r0, [sp]\n"                 \
    "1: ldr r1, [sp]\n"              \
    "ldrd r2, r3, [sp, #12]\n"       \
    "add r8, r1, #" #bytes "\n"      \
    "str r8, [sp]\n"                 \
    "ldrd r4, r5, [sp, #20]\n"       \
    "ldrd r6, r7, [sp, #20]\n"

#define NEXT_ROW    \
    "add r1, lr\n"  \
    "subs r3, #1\n" \
    "bne 2b\n"

#define KEEP_BLOCK            \
    "ldrd r8, r9, [sp, #4]\n" \
    "stmia r8!, {r4-r7}\n"    \
    "str r8, [sp, #4]\n"      \
    "cmp r8, r9\n"            \
    "blo 1b\n"

#define LEAVE                     \
    "6: ldrd r8, r9, [sp, #28]\n" \
    "cmp r8, r9\n"                \
    "blo 5b\n"                    \
    "add sp, #48\n"               \
    "pop {r4-r11, pc}\n"          \
    "7: ldrd r8, r9, [sp, #4]\n"  \
    "ldr r4, [sp, #20]\n"         \
    "8: str r4, [r8], #4\n"       \
    "cmp r8, r9\n"                \
    "blo 8b\n"                    \
    "b 6b\n"

/* sum += both products of a word and a pair; of the word's upper half and the pair's lower one; of
 * the word's lower half and the pair's upper one. */
#define BOTH(sum, word, pair) "smlad r" #sum ", r" #word ", r" #pair ", r" #sum "\n"
#define UPPER_LOWER(sum, word, pair) "smlatb r" #sum ", r" #word ", r" #pair ", r" #sum "\n"
#define LOWER_UPPER(sum, word, pair) "smlabt r" #sum ", r" #word ", r" #pair ", r" #sum "\n"

/* (w0, w1) with the first two words: outputs 0 and 2 begin at words, 1 and 3 in their middle. */
#define FIRST_PAIR(word0, word1) \
    BOTH(4, word0, 11) UPPER_LOWER(5, word0, 11) BOTH(6, word1, 11) UPPER_LOWER(7, word1, 11)
/* The last pair (v, w) with the last two words: w is the last tap of outputs 0 and 2. */
#define LAST_PAIR(word0, word1) \
    LOWER_UPPER(4, word0, 12) BOTH(5, word0, 12) LOWER_UPPER(6, word1, 12) BOTH(7, word1, 12)

/* clang-format off */
/* Rows of three taps: pairs 01 and 12; then (stride 2) 01 and (2, -). */
#define ROW_3_1(next_taps)                                                                         \
    "ldm r1, {r8, r9, r10}\n"                                                                      \
    "ldrd r11, r12, [r2], #" #next_taps "\n"                                                       \
    FIRST_PAIR(8, 9) LAST_PAIR(9, 10)
#define ROW_3_2(next_taps)                                                                         \
    "ldm r1, {r8, r9, r10}\n"                                                                      \
    "ldrd r11, r12, [r2], #" #next_taps "\n"                                                       \
    BOTH(4, 8, 11) BOTH(4, 9, 12) BOTH(5, 9, 11) BOTH(5, 10, 12) BOTH(6, 10, 11)                   \
    "ldrd r8, r9, [r1, #12]\n"                                                                     \
    BOTH(6, 8, 12) BOTH(7, 8, 11) BOTH(7, 9, 12)

/* Three rows of three without counting: r0 is the end of the sums then, r3 where they go. */
#define THREE_ROWS(row, bytes)                                                                     \
    "3: mov r1, r0\n"                                                                              \
    "mov r2, r10\n"                                                                                \
    "ldrd r3, r0, [sp, #4]\n"                                                                      \
    "4: ldrd r4, r5, [sp, #20]\n"                                                                  \
    "ldrd r6, r7, [sp, #20]\n"                                                                     \
    row(8)                                                                                         \
    "add r1, lr\n"                                                                                 \
    row(8)                                                                                         \
    "add r1, lr\n"                                                                                 \
    row(-16)                                                                                       \
    "sub r1, r1, lr, lsl #1\n"                                                                     \
    "add r1, #" #bytes "\n"                                                                        \
    "stmia r3!, {r4-r7}\n"                                                                         \
    "cmp r3, r0\n"                                                                                 \
    "blo 4b\n"                                                                                     \
    "b 6b\n"

#define IF_THREE_ROWS \
    "cmp r11, #3\n"   \
    "beq 3f\n"

#define SLIDE(name)                                                           \
    static __attribute__((naked, noinline)) void name(__attribute__((unused)) \
                                                      const tf_slide_rows *rows)

SLIDE(slide_3_1) {
    __asm volatile(ENTER NEXT_WINDOW IF_THREE_ROWS UNLESS_EMPTY NEXT_BLOCK(8)
                   "2:\n" ROW_3_1(8)
                   NEXT_ROW KEEP_BLOCK LEAVE THREE_ROWS(ROW_3_1, 8));
}

SLIDE(slide_3_2) {
    __asm volatile(ENTER NEXT_WINDOW IF_THREE_ROWS UNLESS_EMPTY NEXT_BLOCK(16)
                   "2:\n" ROW_3_2(8)
                   NEXT_ROW KEEP_BLOCK LEAVE THREE_ROWS(ROW_3_2, 16));
}

/* Pairs 01, 12 and 23 of longer rows; leaves the next pair in r12, words 2 and 3 in r8 and r10. */
#define THREE_PAIRS                                                                                \
    "ldrd r8, r9, [r1]\n"                                                                          \
    "ldrd r11, r12, [r2], #8\n"                                                                    \
    FIRST_PAIR(8, 9)                                                                               \
    "ldrd r8, r10, [r1, #8]\n"                                                                     \
    BOTH(5, 9, 12) BOTH(7, 8, 12)                                                                  \
    "ldrd r11, r12, [r2], #8\n"                                                                    \
    BOTH(4, 9, 11) BOTH(6, 8, 11)

/* Then 34. */
SLIDE(slide_5_1) {
    __asm volatile(ENTER NEXT_WINDOW UNLESS_EMPTY NEXT_BLOCK(8)
                   "2:\n" THREE_PAIRS LAST_PAIR(8, 10)
                   NEXT_ROW KEEP_BLOCK LEAVE);
}

/* Then 34, 45, 56. */
SLIDE(slide_7_1) {
    __asm volatile(ENTER NEXT_WINDOW UNLESS_EMPTY NEXT_BLOCK(8)
                   "2:\n" THREE_PAIRS BOTH(5, 8, 12) BOTH(7, 10, 12)
                   "ldrd r11, r12, [r2], #8\n"
                   "ldr r9, [r1, #16]\n"
                   BOTH(4, 8, 11) BOTH(6, 10, 11) LAST_PAIR(10, 9)
                   NEXT_ROW KEEP_BLOCK LEAVE);
}

/* Pairs 01, 23, (4, -) in r10, r11, r12. */
SLIDE(slide_5_2) {
    __asm volatile(ENTER NEXT_WINDOW UNLESS_EMPTY NEXT_BLOCK(16)
                   "2: ldm r2!, {r10, r11, r12}\n"
                   "ldrd r8, r9, [r1]\n"
                   BOTH(4, 8, 10) BOTH(4, 9, 11) BOTH(5, 9, 10)
                   "ldrd r8, r9, [r1, #8]\n"
                   BOTH(4, 8, 12) BOTH(5, 8, 11) BOTH(6, 8, 10)
                   BOTH(5, 9, 12) BOTH(6, 9, 11) BOTH(7, 9, 10)
                   "ldrd r8, r9, [r1, #16]\n"
                   BOTH(6, 8, 12) BOTH(7, 8, 11) BOTH(7, 9, 12)
                   NEXT_ROW KEEP_BLOCK LEAVE);
}

/* Pairs 01, 23, 45, (6, -) in r0, r10, r11, r12. */
SLIDE(slide_7_2) {
    __asm volatile(ENTER NEXT_WINDOW UNLESS_EMPTY NEXT_BLOCK_FROM_STACK(16)
                   "2: ldm r2!, {r0, r10, r11, r12}\n"
                   "ldrd r8, r9, [r1]\n"
                   BOTH(4, 8, 0) BOTH(4, 9, 10) BOTH(5, 9, 0)
                   "ldrd r8, r9, [r1, #8]\n"
                   BOTH(4, 8, 11) BOTH(5, 8, 10) BOTH(6, 8, 0)
                   BOTH(4, 9, 12) BOTH(5, 9, 11) BOTH(6, 9, 10) BOTH(7, 9, 0)
                   "ldrd r8, r9, [r1, #16]\n"
                   BOTH(5, 8, 12) BOTH(6, 8, 11) BOTH(7, 8, 10)
                   BOTH(6, 9, 12) BOTH(7, 9, 11)
                   "ldr r8, [r1, #24]\n"
                   BOTH(7, 8, 12)
                   NEXT_ROW KEEP_BLOCK LEAVE);
}
/* clang-format on */

#else

static inline __attribute__((always_inline)) void
slide_blocks(const tf_slide_rows *by, const uint32_t width, const uint32_t stride) {
    int32_t *sums = by->sums;
    for (const tf_window *window = by->window; window != by->end; window++) {
        int32_t *end = sums + by->row_bytes / sizeof *sums;
        const int16_t *plane = by->plane + window->plane;
        for (int32_t *to = sums; to < end; plane += 8u * stride, to += 8) {
            int32_t s[8];
            for (uint32_t i = 0; i < 8u; i++) {
                s[i] = by->start;
            }
            const int16_t *x = plane, *t = by->table + window->table;
            for (int32_t r = window->rows; r > 0; r--, x += by->line_bytes / 2u, t += width + 1u) {
                for (uint32_t j = 0; j < width; j++) {
                    for (uint32_t i = 0; i < 8u; i++) {
                        s[i] += x[i * stride + j] * t[j];
                    }
                }
            }
            for (uint32_t i = 0; i < 8u; i++) {
                to[i] = s[i];
            }
        }
        sums = end;
    }
}

#define SLIDE(name, width, stride)                \
    static void name(const tf_slide_rows *rows) { \
        slide_blocks(rows, width, stride);        \
    }

SLIDE(slide_3_1, 3u, 1u)
SLIDE(slide_5_1, 5u, 1u)
SLIDE(slide_7_1, 7u, 1u)
SLIDE(slide_3_2, 3u, 2u)
SLIDE(slide_5_2, 5u, 2u)
SLIDE(slide_7_2, 7u, 2u)

#endif

/* Any width and stride. The table has plain taps, and a zero behind an odd number of them. */
static int32_t one_output(const tf_slide *slide, const int16_t *x, const int16_t *t, uint32_t rows,
                          int32_t sum) {
    for (uint32_t r = rows; r > 0u; r--, x += slide->line, t += slide->taps_row) {
#if TF_DSP
        for (uint32_t j = 0; j < slide->taps_row; j += 2u) {
            sum = __smlad((int16x2_t)tf_load32(x + j), (int16x2_t)tf_load32(t + j), sum);
        }
#else
        for (uint32_t j = 0; j < slide->width; j++) {
            sum += x[j] * t[j];
        }
#endif
    }
    return sum;
}

tf_slide tf_make_slide(uint32_t taps, uint32_t stride, uint32_t line) {
    static void (*const of_width[2][3])(const tf_slide_rows *) = {
        {slide_3_1, slide_5_1, slide_7_1}, {slide_3_2, slide_5_2, slide_7_2}};
    tf_slide slide = {taps, stride, (taps + 1u) & ~1u, line, 0, NULL};
    if (taps <= 7u && stride <= 2u) {
        const uint32_t at = taps <= 3u ? 0u : (taps <= 5u ? 1u : 2u);
        slide.run = of_width[stride - 1u][at];
        slide.width = 2u * at + 3u;
        slide.overlapping = TF_DSP && stride == 1u;
        slide.taps_row = slide.overlapping ? 2u * (slide.width - 1u) : slide.width + 1u;
    }
    return slide;
}

void tf_slide_slowly(const tf_slide *slide, const tf_slide_rows *by) {
    const uint32_t count = by->row_bytes / sizeof *by->sums;
    int32_t *sums = by->sums;
    for (const tf_window *window = by->window; window != by->end; window++, sums += count) {
        const int16_t *plane = by->plane + window->plane, *table = by->table + window->table;
        for (uint32_t x = 0; x < count; x++) {
            sums[x] = one_output(slide, plane + x * slide->stride, table, (uint32_t)window->rows,
                                 by->start);
        }
    }
}
