/* Routing on x86-64: best score of any token for every chunk, and the best documents; no score of a single token is ever stored.
 *
 * Keys are rows of bf16 or int8, `stride` bytes apart and `steps` times 64 bytes long. Queries are packed in tiles of 16 tokens:
 * for each step and each of its 16 four-byte groups, that group of all 16 tokens, so that one step of a tile is 1024 bytes.
 * This is the layout both of an AMX tile operand and of a plain AVX-512 dot product against a broadcast group of a key.
 * Question q owns tiles tile_at[q] .. tile_at[q + 1] - 1; tokens that fill up its last tile repeat a token of it, so that no
 * maximum needs a mask. Chunks first .. last - 1 are scored, or with `rows` the chunks rows[first] .. rows[last - 1]; out[q * out_stride
 * + place], -infinity at first, is raised to the best score.
 */
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AVX512_BF16 = 1, AVX512_VNNI = 2, AMX_BF16 = 4, AMX_INT8 = 8 };
enum { AS_IT_IS = 0, INT8 = 1, FLOAT32 = 2, FLOAT8 = 3 };
enum { TILE = 1024, SUB = 32, ROWS = 6, GROUP_BYTES = 1 << 19, AGAIN = 1024 };

/* What the processor has and the kernel saves for a process: CPUID leaf 7 and XCR0, and Linux's consent to AMX. */
int msa_features(void) {
    unsigned a, b, c, d, b7, c7, d7, xcr, high;
    int have = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;
    __asm__ volatile("xgetbv" : "=a"(xcr), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || (xcr & 0xe6) != 0xe6) return 0;
    if (!(b7 & (1u << 16)) || !(b7 & (1u << 30)) || !(b7 & (1u << 31))) return 0; /* AVX-512 F, BW, VL */
    if (c7 & (1u << 11)) have |= AVX512_VNNI;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5))) have |= AVX512_BF16;
    if ((xcr & 0x60000) == 0x60000 && (d7 & (1u << 24)) && syscall(SYS_arch_prctl, 0x1023, 18) == 0) {
        if (d7 & (1u << 22)) have |= AMX_BF16;
        if (d7 & (1u << 25)) have |= AMX_INT8;
    }
    return have;
}

typedef struct {
    const uint8_t *keys;
    int64_t stride, steps, first, last;
    const int64_t *rows; /* or null */
    int64_t from;        /* dtype of keys that are scored in bf16 on the way: INT8, FLOAT8 (bf16 holds all of them), FLOAT32; or AS_IT_IS */
    const uint8_t *packed;
    int64_t questions;
    const int64_t *tile_at;
    const float *query_scales;   /* of every packed token, or null */
    const float *key_scales;     /* of chunk c at c * key_scale_step, or null */
    int64_t key_scale_step;
    float *out;
    int64_t out_stride;
} Routing;

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,amx-tile,amx-bf16,amx-int8")))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

/* Token tiles that pass by the same keys before the next keys are read: what stays in a second-level cache. */
static int64_t group_tiles(const Routing *r) {
    const int64_t tiles = GROUP_BYTES / (r->steps * TILE);
    return tiles < 2 ? 2 : tiles & ~1;
}

/* 16 stored numbers as floats. e4m3 is moved to where a float has its exponent, which is then corrected by a product. */
static inline WIDE __m512 floats(const uint8_t *at, int64_t from) {
    if (from == FLOAT32) return _mm512_loadu_ps(at);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)at);
    if (from == INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    const __m512i wide = _mm512_cvtepu8_epi32(bytes), sign = _mm512_slli_epi32(_mm512_srli_epi32(wide, 7), 31);
    const __m512i rest = _mm512_slli_epi32(_mm512_and_si512(wide, _mm512_set1_epi32(0x7f)), 20);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(sign, rest)), _mm512_set1_ps(0x1p120f));
}

/* The upper halves of floats, rounded to nearest, halves to even: bf16. */
static inline WIDE __m512i rounded(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
}

static inline WIDE void raise_to(const Routing *r, int64_t q, int64_t place, int64_t count, const __m512 *best) {
    float *out = r->out + q * r->out_stride + place;
    for (int64_t i = 0; i < count; i++) {
        const int64_t chunk = r->rows ? r->rows[place + i] : place + i;
        const float sum = _mm512_reduce_max_ps(best[i]);
        const float score = r->key_scales ? sum * r->key_scales[chunk * r->key_scale_step] : sum;
        if (score > out[i]) out[i] = score;
    }
}

/* Room for `rows` keys one after another, zero-filled. */
static uint8_t *room(const Routing *r, int64_t rows) {
    const size_t bytes = (size_t)(rows * r->steps * 64);
    uint8_t *copy = aligned_alloc(64, bytes);
    if (!copy) abort();
    return memset(copy, 0, bytes);
}

/* The `rows` keys from a place on: where they lie or, if they are listed, not bf16 yet or not so many left, copied; so nothing behind the
 * bank is ever read, and a copy's keys beyond the last are not scored. */
static WIDE const uint8_t *keys_at(const Routing *r, int64_t place, int64_t rows, uint8_t *copy, int64_t *stride) {
    if (!r->rows && !r->from && place + rows <= r->last) {
        *stride = r->stride;
        return r->keys + place * r->stride;
    }
    *stride = r->steps * 64;
    for (int64_t i = 0; i < rows && place + i < r->last; i++) {
        const uint8_t *row = r->keys + (r->rows ? r->rows[place + i] : place + i) * r->stride;
        if (r->from)
            for (int64_t j = 0; j < *stride; j += 32) {
                const __m512 x = floats(row + j / 2 * (r->from == FLOAT32 ? 4 : 1), r->from);
                _mm256_storeu_si256((__m256i *)(copy + i * *stride + j), _mm512_cvtepi32_epi16(rounded(x)));
            }
        else
            memcpy(copy + i * *stride, row, (size_t)*stride);
    }
    return copy;
}

/* Rounds rows of `width` floats to bf16 (kind 0), to int8 by a scale each (1) or to that plus 128 (2), and packs them: row index[i] is token
 * i % 16 of tile i / 16. errors[q]: how far a score of question q can be off, from what rounding did to its tokens (score_error in
 * keys.py); no key is longer than key_norm or farther than key_error from what it stands for, and sums add `summing`. */
WIDE void msa_pack(const float *rows, const int64_t *index, const int64_t *tile_at, int64_t questions, int64_t width, int kind,
                   float key_norm, float key_error, float summing, uint8_t *packed, float *scales, float *errors) {
    int64_t q = 0;
    for (int64_t i = 0; i < questions; i++) errors[i] = 0;
    const int64_t groups = width / (kind ? 4 : 2);
    const float up = 1.0001f; /* sums of width / 16 + 16 float32 terms are off by less */
    for (int64_t n = 0; n < tile_at[questions] * 16; n++) {
        while (n >= tile_at[q + 1] * 16) q++;
        const float *row = rows + index[n] * width;
        __m512 peak = _mm512_setzero_ps(), square = peak, gap = peak, keep = peak;
        for (int64_t i = 0; i < width; i += 16) peak = _mm512_max_ps(peak, _mm512_abs_ps(_mm512_loadu_ps(row + i)));
        const float largest = _mm512_reduce_max_ps(peak);
        const __m512 scale = _mm512_set1_ps(largest > 0 ? largest / 127 : 1);
        uint8_t *to = packed + n / 16 * groups * 64 + n % 16 * 4;
        for (int64_t i = 0; i < width; i += 16) {
            const __m512 x = _mm512_loadu_ps(row + i);
            __m512 y;
            int32_t part[8];
            if (kind) {
                __m512i value = _mm512_cvtps_epi32(_mm512_div_ps(x, scale)); /* to nearest, halves to even */
                y = _mm512_mul_ps(_mm512_cvtepi32_ps(value), scale);
                if (kind == 2) value = _mm512_add_epi32(value, _mm512_set1_epi32(128));
                _mm_storeu_si128((__m128i *)part, _mm512_cvtepi32_epi8(value));
            } else {
                const __m512i high = rounded(x);
                y = _mm512_castsi512_ps(_mm512_slli_epi32(high, 16));
                _mm256_storeu_si256((__m256i *)part, _mm512_cvtepi32_epi16(high));
            }
            for (int64_t g = 0; g < (kind ? 4 : 8); g++) memcpy(to + (i / (kind ? 4 : 2) + g) * 64, part + g, 4);
            const __m512 off = _mm512_sub_ps(x, y);
            square = _mm512_fmadd_ps(x, x, square), gap = _mm512_fmadd_ps(off, off, gap), keep = _mm512_fmadd_ps(y, y, keep);
        }
        scales[n] = _mm512_cvtss_f32(scale);
        const float bound = up * (__builtin_sqrtf(_mm512_reduce_add_ps(square)) * key_error +
                                  __builtin_sqrtf(_mm512_reduce_add_ps(gap)) * key_norm +
                                  __builtin_sqrtf(_mm512_reduce_add_ps(keep)) * key_norm * summing);
        if (bound > errors[q]) errors[q] = bound;
    }
}

/* AMX: 32 chunks x 32 tokens in four accumulators. The keys of 32 chunks stay in the cache while the tokens of a group pass by;
 * hardware prefetchers do not follow 32 rows at once, so each pair of token tiles asks for its share of the next 32. */
#define AMX_KERNEL(NAME, DOT, FLOATS)                                                                                           \
    static AMX void NAME##_group(const Routing *r, int64_t from, int64_t to, uint8_t *copy) {                                   \
        float sums[4][16][16] __attribute__((aligned(64)));                                                                     \
        const int64_t steps = r->steps, pairs = (to - from + 1) / 2, rows = (SUB + pairs - 1) / pairs;                          \
        for (int64_t chunk = r->first; chunk < r->last; chunk += SUB) {                                                         \
            int64_t stride;                                                                                                     \
            const uint8_t *a = keys_at(r, chunk, SUB, copy, &stride);                                                           \
            const uint8_t *next[SUB];                                                                                           \
            int64_t share = chunk + 2 * SUB <= r->last ? 0 : SUB;                                                               \
            if (!share)                                                                                                         \
                for (int64_t i = chunk + SUB; i < chunk + 2 * SUB; i++)                                                         \
                    next[i - chunk - SUB] = r->keys + (r->rows ? r->rows[i] : i) * r->stride;                                   \
            for (int64_t q = 0; q < r->questions; q++) {                                                                        \
                const int64_t start = r->tile_at[q] > from ? r->tile_at[q] : from;                                              \
                const int64_t stop = r->tile_at[q + 1] < to ? r->tile_at[q + 1] : to;                                           \
                __m512 best[SUB];                                                                                               \
                for (int i = 0; i < SUB; i++) best[i] = _mm512_set1_ps(-__builtin_inff());                                      \
                for (int64_t t = start; t < stop; t += 2, share++) {                                                            \
                    const uint8_t *b0 = r->packed + t * steps * TILE, *b1 = t + 1 < stop ? b0 + steps * TILE : b0;              \
                    const float *scales = r->query_scales ? r->query_scales + t * 16 : 0;                                       \
                    const __m512 s0 = scales ? _mm512_loadu_ps(scales) : _mm512_set1_ps(1.0f);                                  \
                    const __m512 s1 = scales && b1 != b0 ? _mm512_loadu_ps(scales + 16) : s0;                                   \
                    const int64_t asked = share * rows, asking = asked + rows < SUB ? asked + rows : SUB;                       \
                    _tile_zero(0);                                                                                              \
                    _tile_zero(1);                                                                                              \
                    _tile_zero(2);                                                                                              \
                    _tile_zero(3);                                                                                              \
                    for (int64_t s = 0; s < steps; s++) {                                                                       \
                        _tile_loadd(4, a + s * 64, stride);                                                                     \
                        _tile_loadd(6, b0 + s * TILE, 64);                                                                      \
                        _tile_loadd(7, b1 + s * TILE, 64);                                                                      \
                        _tile_loadd(5, a + 16 * stride + s * 64, stride);                                                       \
                        for (int64_t i = asked; i < asking; i++)                                                                \
                            _mm_prefetch((const char *)(next[i] + s * 64), _MM_HINT_T1);                                        \
                        DOT(0, 4, 6);                                                                                           \
                        DOT(1, 4, 7);                                                                                           \
                        DOT(2, 5, 6);                                                                                           \
                        DOT(3, 5, 7);                                                                                           \
                    }                                                                                                           \
                    _tile_stored(0, sums[0], 64);                                                                               \
                    _tile_stored(1, sums[1], 64);                                                                               \
                    _tile_stored(2, sums[2], 64);                                                                               \
                    _tile_stored(3, sums[3], 64);                                                                               \
                    for (int i = 0; i < SUB; i++) {                                                                             \
                        const __m512 x = _mm512_mul_ps(FLOATS(sums[i / 16 * 2][i % 16]), s0);                                   \
                        const __m512 y = _mm512_mul_ps(FLOATS(sums[i / 16 * 2 + 1][i % 16]), s1);                               \
                        best[i] = _mm512_max_ps(best[i], _mm512_max_ps(x, y));                                                  \
                    }                                                                                                           \
                }                                                                                                               \
                if (start < stop) raise_to(r, q, chunk, r->last - chunk < SUB ? r->last - chunk : SUB, best);                   \
            }                                                                                                                   \
        }                                                                                                                       \
    }                                                                                                                           \
    AMX void NAME(const Routing *r) {                                                                                           \
        struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;                              \
        memset(&config, 0, sizeof config);                                                                                      \
        config.palette = 1;                                                                                                     \
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;                                                  \
        _tile_loadconfig(&config);                                                                                              \
        uint8_t *copy = room(r, SUB);                                                                                           \
        const int64_t tiles = r->tile_at[r->questions], most = group_tiles(r);                                                  \
        for (int64_t from = 0; from < tiles; from += most)                                                                      \
            NAME##_group(r, from, from + most < tiles ? from + most : tiles, copy);                                             \
        _tile_release();                                                                                                        \
        free(copy);                                                                                                             \
    }
#define AS_FLOATS(p) _mm512_load_ps(p)
#define INTS_AS_FLOATS(p) _mm512_cvtepi32_ps(_mm512_load_si512((const void *)(p)))
AMX_KERNEL(msa_amx_bf16, _tile_dpbf16ps, AS_FLOATS)
AMX_KERNEL(msa_amx_int8, _tile_dpbssd, INTS_AS_FLOATS)

/* AVX-512: ROWS chunks x COUNT tiles of tokens in registers. VNNI multiplies unsigned by signed bytes, so tokens come packed with
 * 128 added, and a chunk's sums start at -128 times the sum of its key, which takes that away again. */
static inline VNNI void key_starts(const Routing *r, const uint8_t *a, int64_t stride, int32_t *starts) {
    for (int i = 0; i < ROWS; i++) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t s = 0; s < r->steps; s++)
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512((const void *)(a + i * stride + s * 64)));
        starts[i] = -128 * _mm512_reduce_add_epi32(sum);
    }
}
static inline void no_starts(const Routing *r, const uint8_t *a, int64_t stride, int32_t *starts) {
    (void)r, (void)a, (void)stride, (void)starts;
}
#define VECTOR_BLOCK(NAME, TARGET, SUM, START, STEP, FLOATS)                                                                    \
    static inline __attribute__((always_inline)) TARGET void NAME(const Routing *r, const uint8_t *a, int64_t stride,           \
                                                                  const int32_t *starts, int64_t t, const int count,            \
                                                                  __m512 *best) {                                               \
        SUM sums[ROWS][2];                                                                                                      \
        (void)starts;                                                                                                           \
        const uint8_t *b = r->packed + t * r->steps * TILE;                                                                     \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                                                  \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) sums[i][j] = START(starts[i]);                              \
        for (int64_t g = 0; g < r->steps * 16; g++) {                                                                           \
            __m512i tokens[2];                                                                                                  \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++)                                                             \
                tokens[j] = _mm512_loadu_si512((const void *)(b + j * r->steps * TILE + g * 64));                               \
            _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++) {                                                            \
                int32_t group;                                                                                                  \
                memcpy(&group, a + i * stride + g * 4, 4);                                                                      \
                const __m512i key = _mm512_set1_epi32(group);                                                                   \
                _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) sums[i][j] = STEP(sums[i][j], tokens[j], key);          \
            }                                                                                                                   \
        }                                                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                                                  \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) {                                                           \
                __m512 x = FLOATS(sums[i][j]);                                                                                  \
                if (r->query_scales) x = _mm512_mul_ps(x, _mm512_loadu_ps(r->query_scales + (t + j) * 16));                     \
                best[i] = _mm512_max_ps(best[i], x);                                                                            \
            }                                                                                                                   \
    }
#define VECTOR_KERNEL(NAME, TARGET, PART, STARTS)                                                                               \
    TARGET void NAME(const Routing *r) {                                                                                        \
        uint8_t *copy = room(r, ROWS);                                                                                          \
        const int64_t tiles = r->tile_at[r->questions], most = group_tiles(r);                                                  \
        for (int64_t from = 0; from < tiles; from += most)                                                                      \
            for (int64_t chunk = r->first; chunk < r->last; chunk += ROWS) {                                                    \
                int64_t stride;                                                                                                 \
                const uint8_t *a = keys_at(r, chunk, ROWS, copy, &stride);                                                      \
                int32_t starts[ROWS] = {0};                                                                                     \
                STARTS(r, a, stride, starts);                                                                                   \
                for (int64_t q = 0; q < r->questions; q++) {                                                                    \
                    int64_t t = r->tile_at[q] > from ? r->tile_at[q] : from;                                                    \
                    const int64_t stop = r->tile_at[q + 1] < from + most ? r->tile_at[q + 1] : from + most;                     \
                    if (t >= stop) continue;                                                                                    \
                    __m512 best[ROWS];                                                                                          \
                    for (int i = 0; i < ROWS; i++) best[i] = _mm512_set1_ps(-__builtin_inff());                                 \
                    for (; t + 2 <= stop; t += 2) PART(r, a, stride, starts, t, 2, best);                                       \
                    if (t < stop) PART(r, a, stride, starts, t, 1, best);                                                       \
                    raise_to(r, q, chunk, r->last - chunk < ROWS ? r->last - chunk : ROWS, best);                               \
                }                                                                                                               \
            }                                                                                                                   \
        free(copy);                                                                                                             \
    }
#define ZERO_FLOATS(start) _mm512_setzero_ps()
#define STEP_BF16(sum, tokens, key) _mm512_dpbf16_ps(sum, (__m512bh)(tokens), (__m512bh)(key))
#define SAME(x) (x)
VECTOR_BLOCK(bf16_block, BF16, __m512, ZERO_FLOATS, STEP_BF16, SAME)
VECTOR_BLOCK(vnni_block, VNNI, __m512i, _mm512_set1_epi32, _mm512_dpbusd_epi32, _mm512_cvtepi32_ps)
VECTOR_KERNEL(msa_avx512_bf16, BF16, bf16_block, no_starts)
VECTOR_KERNEL(msa_avx512_vnni, VNNI, vnni_block, key_starts)

/* The k best documents of questions first .. last - 1, best first, equal scores by the lowest id; -1 and -inf where there are fewer.
 * `visible` [questions, documents] of bytes, or null. Returns 0, or -1 where offsets do not rise within the chunks. */
int msa_top_documents(const float *scores, int64_t chunks, const int64_t *offsets, const int64_t *ids, int64_t documents,
                       const uint8_t *visible, int64_t k, int64_t first, int64_t last, int64_t *out, float *out_scores) {
    int64_t end = 0;
    for (int64_t n = 0; n <= documents; n++) {
        if (offsets[n] < end || offsets[n] > chunks) return -1;
        end = offsets[n];
    }
    for (int64_t q = first; q < last; q++) {
        const float *row = scores + q * chunks;
        int64_t *best = out + q * k;
        float *values = out_scores + q * k;
        for (int64_t i = 0; i < k; i++) best[i] = -1, values[i] = -__builtin_inff();
        for (int64_t n = 0; n < documents && k > 0; n++) {
            if (visible && !visible[q * documents + n]) continue;
            float score = -__builtin_inff();
            for (int64_t c = offsets[n]; c < offsets[n + 1]; c++)
                if (row[c] > score) score = row[c];
            if (score == -__builtin_inff() || score < values[k - 1]) continue;
            if (score == values[k - 1] && ids[n] >= ids[best[k - 1]]) continue;
            int64_t at = k - 1;
            for (; at > 0 && (score > values[at - 1] || (score == values[at - 1] && ids[n] < ids[best[at - 1]])); at--)
                best[at] = best[at - 1], values[at] = values[at - 1];
            best[at] = n, values[at] = score;
        }
    }
    return 0;
}

typedef struct {
    float *scores; /* of a first pass, [chunks]; overwritten */
    int64_t chunks;
    float error; /* how far each of them can be off */
    float least; /* documents whose exact score is below this do not matter */
    const int64_t *offsets, *ids;
    int64_t documents;
    const uint8_t *visible; /* [documents] or null */
    int64_t k;
    void (*between)(const Routing *); /* a scoring function for a pass between, or null */
    const Routing *routing;           /* its argument, but for rows, first, last and out */
    float between_error;              /* how far its scores can be off */
    const uint8_t *keys; /* what a score is measured by, scaled */
    int64_t stride, width;
    int from; /* dtype of keys, AS_IT_IS being bf16 */
    const float *key_scales;
    int64_t key_scale_step;
    const float *tokens; /* folded queries of tokens index[0] .. index[count - 1], `width` apart */
    const int64_t *index;
    int64_t count;
    int64_t *best, *best_ids; /* [k] */
    float *values;            /* [k] */
} Settle;

/* Score of one chunk, summed in float64 and rounded once, so that it does not depend on the order of the sums. */
static WIDE float exact_score(const Settle *s, int64_t chunk, double *key) {
    const uint8_t *row = s->keys + chunk * s->stride;
    const __m512d scale = _mm512_set1_pd(s->key_scales ? s->key_scales[chunk * s->key_scale_step] : 1.0);
    for (int64_t i = 0; i < s->width; i += 16) {
        __m512 x;
        if (s->from == AS_IT_IS)
            x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + 2 * i))), 16));
        else
            x = floats(row + i * (s->from == FLOAT32 ? 4 : 1), s->from);
        const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
        _mm512_storeu_pd(key + i, _mm512_mul_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), scale));
        _mm512_storeu_pd(key + i + 8, _mm512_mul_pd(_mm512_cvtps_pd(high), scale));
    }
    double best = -__builtin_inf();
    for (int64_t n = 0; n < s->count; n++) {
        const float *token = s->tokens + s->index[n] * s->width;
        __m512d sum = _mm512_setzero_pd(), other = sum;
        for (int64_t i = 0; i < s->width; i += 16) {
            sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(token + i)), _mm512_loadu_pd(key + i), sum);
            other = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(token + i + 8)), _mm512_loadu_pd(key + i + 8), other);
        }
        const double score = _mm512_reduce_add_pd(_mm512_add_pd(sum, other));
        if (score > best) best = score;
    }
    return (float)best;
}

/* The chunks behind `chunk` that reach `floor`, at most `room` of them (16 at least), into `list`; the others are dropped. Returns how many,
 * and in `chunk` where to go on. */
static WIDE int64_t reaching(const Settle *s, float floor, int64_t *chunk, int64_t *list, int64_t room) {
    const __m512 nothing = _mm512_set1_ps(-__builtin_inff()), least = _mm512_set1_ps(floor);
    int64_t listed = 0;
    for (; *chunk < s->chunks && listed + 16 <= room; *chunk += 16) {
        const __mmask16 some = s->chunks - *chunk < 16 ? (1 << (s->chunks - *chunk)) - 1 : 0xFFFF;
        const __mmask16 high = _mm512_mask_cmp_ps_mask(some, _mm512_mask_loadu_ps(nothing, some, s->scores + *chunk), least, _CMP_GE_OQ);
        _mm512_mask_storeu_ps(s->scores + *chunk, some & ~high, nothing);
        for (int left = high; left; left &= left - 1) list[listed++] = *chunk + __builtin_ctz(left);
    }
    return listed;
}

/* Scores again every chunk that reaches `floor`, in place, and drops the others. Returns how many there were. */
static int64_t score_again(const Settle *s, float floor, int between, double *key) {
    int64_t list[AGAIN], all = 0;
    float got[AGAIN];
    for (int64_t chunk = 0; chunk < s->chunks;) {
        const int64_t listed = reaching(s, floor, &chunk, list, AGAIN);
        if (between && listed) {
            Routing part = *s->routing;
            part.rows = list, part.first = 0, part.last = listed, part.out = got, part.out_stride = AGAIN;
            for (int64_t i = 0; i < listed; i++) got[i] = -__builtin_inff();
            s->between(&part);
        }
        for (int64_t i = 0; i < listed; i++) s->scores[list[i]] = between ? got[i] : exact_score(s, list[i], key);
        all += listed;
    }
    return all;
}

static int top_of(const Settle *s) {
    return msa_top_documents(s->scores, s->chunks, s->offsets, s->ids, s->documents, s->visible, s->k, 0, 1, s->best, s->values);
}

static float higher(float a, float b) { return a > b ? a : b; }

/* The k best documents of one question by exact scores. k documents reach the k-th score of a pass less its error, so one whose chunks,
 * error added, stay below that is out; and a document that is in has its true best chunk above it. Returns how many chunks were scored
 * exactly, or -1 as above. */
int64_t msa_settle(const Settle *s) {
    if (top_of(s)) return -1;
    double *key = malloc((size_t)s->width * sizeof(double));
    if (!key) abort();
    float floor = higher(s->values[s->k - 1] - 2 * s->error, s->least - s->error);
    if (s->between) {
        score_again(s, floor, 1, key);
        top_of(s);
        floor = higher(s->values[s->k - 1] - 2 * s->between_error, s->least - s->between_error);
    }
    const int64_t exact = score_again(s, floor, 0, key);
    top_of(s);
    free(key);
    for (int64_t i = 0; i < s->k; i++) s->best_ids[i] = s->best[i] < 0 ? -1 : s->ids[s->best[i]];
    return exact;
}
