/* Routing on x86-64: best score of any token for every chunk, and the best documents; no score of a single token is ever stored.
 *
 * Keys are rows of a stored type, `stride` bytes apart; in the type of the products a row is `steps` times 64 bytes long. Queries are packed in
 * tiles of as many tokens as a vector has 4-byte lanes, 16 or with AVX2 8: for each step and each of its 16 four-byte groups, that group
 * of all tokens of the tile. This is the layout both of an AMX tile operand and of a plain product of vectors with a broadcast group of a key.
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

enum { AVX512_BF16 = 1, AVX512_VNNI = 2, AMX_BF16 = 4, AMX_INT8 = 8, AVX2_FMA = 16 };
enum { BFLOAT16 = 0, INT8 = 1, FLOAT32 = 2, FLOAT8 = 3, INT16 = 4 };
enum { SUB = 32, GROUP_BYTES = 1 << 19, AGAIN = 1024 };

/* What the processor has and the kernel saves for a process: CPUID leaf 7 and XCR0, and Linux's consent to AMX. Without AVX2 and FMA
 * nothing here runs but msa_top_documents. */
int msa_features(void) {
    unsigned a, b, c, d, b7, c7, d7, xcr, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27)) || !(c & (1u << 12))) return 0;
    __asm__ volatile("xgetbv" : "=a"(xcr), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || (xcr & 6) != 6 || !(b7 & (1u << 5))) return 0;
    int have = AVX2_FMA;
    if ((xcr & 0xe6) != 0xe6) return have;
    if (!(b7 & (1u << 16)) || !(b7 & (1u << 30)) || !(b7 & (1u << 31))) return have; /* AVX-512 F, BW, VL */
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
    int64_t stored;      /* type of the keys as they lie; a scoring function reads others than its own a few rows at a time */
    const uint8_t *packed;
    int64_t questions;
    const int64_t *tile_at;
    const float *query_scales;   /* of every packed token, or null */
    const float *key_scales;     /* of chunk c at c * key_scale_step, or null */
    int64_t key_scale_step;
    float *out;
    int64_t out_stride;
} Routing;

#define AVX2 __attribute__((target("avx2,fma")))
#define AMX __attribute__((target("fma,avx512f,avx512bw,avx512vl,amx-tile,amx-bf16,amx-int8")))
#define BF16 __attribute__((target("fma,avx512f,avx512bw,avx512vl,avx512bf16")))
#define VNNI __attribute__((target("fma,avx512f,avx512bw,avx512vl,avx512vnni")))

/* Token tiles that pass by the same keys before the next keys are read: what stays in a second-level cache. */
static int64_t group_tiles(const Routing *r, int64_t lanes) {
    const int64_t tiles = GROUP_BYTES / (r->steps * lanes * 64);
    return tiles < 2 ? 2 : tiles & ~1;
}

/* 8 stored numbers as floats, the first `i` elements into a row. e4m3 is moved to where a float has its exponent, which is then corrected by a
 * product. */
static inline AVX2 __m256 floats(const uint8_t *row, int64_t i, int64_t stored) {
    if (stored == FLOAT32) return _mm256_loadu_ps((const float *)row + i);
    if (stored == BFLOAT16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + 2 * i))), 16));
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(row + i));
    if (stored == INT8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    const __m256i wide = _mm256_cvtepu8_epi32(bytes), sign = _mm256_slli_epi32(_mm256_srli_epi32(wide, 7), 31);
    const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(wide, _mm256_set1_epi32(0x7f)), 20);
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_or_si256(sign, rest)), _mm256_set1_ps(0x1p120f));
}

/* The upper halves of floats, rounded to nearest, halves to even: bf16. */
static inline AVX2 __m256i rounded(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}

/* 16 ints, which fit, as 16-bit ones. */
static inline AVX2 __m256i halves(__m256i low, __m256i high, int is_signed) {
    return _mm256_permute4x64_epi64(is_signed ? _mm256_packs_epi32(low, high) : _mm256_packus_epi32(low, high), 0xd8);
}

static inline AVX2 float reduce_max_256(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)), two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#define reduce_max_512 _mm512_reduce_max_ps

static inline AVX2 double sum_of(__m256d x) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static void raise_to(const Routing *r, int64_t q, int64_t place, int64_t count, const float *best) {
    float *out = r->out + q * r->out_stride + place;
    if (count > r->last - place) count = r->last - place;
    for (int64_t i = 0; i < count; i++) {
        const int64_t chunk = r->rows ? r->rows[place + i] : place + i;
        const float score = r->key_scales ? best[i] * r->key_scales[chunk * r->key_scale_step] : best[i];
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

/* The `rows` keys from a place on: where they lie or, if they are listed, of another type than `product` or not so many left, copied; so nothing
 * behind the bank is ever read, and a copy's keys beyond the last are not scored. */
static AVX2 const uint8_t *keys_at(const Routing *r, int64_t place, int64_t rows, int64_t product, uint8_t *copy, int64_t *stride) {
    if (!r->rows && r->stored == product && place + rows <= r->last) {
        *stride = r->stride;
        return r->keys + place * r->stride;
    }
    *stride = r->steps * 64;
    for (int64_t n = 0; n < rows && place + n < r->last; n++) {
        const uint8_t *row = r->keys + (r->rows ? r->rows[place + n] : place + n) * r->stride;
        uint8_t *to = copy + n * *stride;
        if (r->stored == product)
            memcpy(to, row, (size_t)*stride);
        else if (product == FLOAT32)
            for (int64_t i = 0; i < *stride / 4; i += 8) _mm256_storeu_ps((float *)to + i, floats(row, i, r->stored));
        else if (product == INT16)
            for (int64_t i = 0; i < *stride / 2; i += 16)
                _mm256_storeu_si256((__m256i *)(to + 2 * i), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + i))));
        else
            for (int64_t i = 0; i < *stride / 2; i += 16)
                _mm256_storeu_si256((__m256i *)(to + 2 * i),
                                    halves(rounded(floats(row, i, r->stored)), rounded(floats(row, i + 8, r->stored)), 0));
    }
    return copy;
}

/* Rounds rows of `width` floats to the type of the products, INT8 and INT16 by a scale each that puts the largest number on `largest`, and packs
 * them in tiles of `lanes`: row index[i] is token i % lanes of tile i / lanes; `offset` is added to every packed number. errors[q]: how far a
 * score of question q can be off, from what rounding did to its tokens (score_error in keys.py); no key is longer than key_norm
 * or farther than key_error from what it stands for, and sums add `summing`. */
AVX2 void msa_pack(const float *rows, const int64_t *index, const int64_t *tile_at, int64_t questions, int64_t width, int product,
                   int lanes, float largest, int offset, float key_norm, float key_error, float summing, uint8_t *packed,
                   float *scales, float *errors) {
    int64_t q = 0;
    for (int64_t i = 0; i < questions; i++) errors[i] = 0;
    const int64_t each = product == INT8 ? 4 : product == FLOAT32 ? 1 : 2, groups = width / each; /* numbers of a group */
    const float up = 1.0001f; /* sums of width / 8 + 8 float32 terms are off by less */
    for (int64_t n = 0; n < tile_at[questions] * lanes; n++) {
        while (n >= tile_at[q + 1] * lanes) q++;
        const float *row = rows + index[n] * width;
        __m256 peak = _mm256_setzero_ps(), square = peak, gap = peak, keep = peak;
        const __m256 sign = _mm256_set1_ps(-0.0f);
        for (int64_t i = 0; i < width; i += 8) peak = _mm256_max_ps(peak, _mm256_andnot_ps(sign, _mm256_loadu_ps(row + i)));
        const float most = reduce_max_256(peak), scale = most > 0 ? most / largest : 1;
        uint8_t *to = packed + (n / lanes * groups * lanes + n % lanes) * 4;
        for (int64_t i = 0; i < width; i += 16) {
            int32_t part[16];
            __m256i bits[2];
            for (int64_t j = 0; j < 2; j++) {
                const __m256 x = _mm256_loadu_ps(row + i + 8 * j);
                __m256 y = x;
                if (product == BFLOAT16) {
                    bits[j] = rounded(x);
                    y = _mm256_castsi256_ps(_mm256_slli_epi32(bits[j], 16));
                } else if (product == FLOAT32)
                    bits[j] = _mm256_castps_si256(x);
                else {
                    bits[j] = _mm256_cvtps_epi32(_mm256_div_ps(x, _mm256_set1_ps(scale))); /* to nearest, halves to even */
                    y = _mm256_mul_ps(_mm256_cvtepi32_ps(bits[j]), _mm256_set1_ps(scale));
                    bits[j] = _mm256_add_epi32(bits[j], _mm256_set1_epi32(offset));
                }
                const __m256 off = _mm256_sub_ps(x, y);
                square = _mm256_fmadd_ps(x, x, square), gap = _mm256_fmadd_ps(off, off, gap), keep = _mm256_fmadd_ps(y, y, keep);
            }
            if (each == 1)
                for (int j = 0; j < 2; j++) _mm256_storeu_si256((__m256i *)(part + 8 * j), bits[j]);
            else if (each == 2)
                _mm256_storeu_si256((__m256i *)part, halves(bits[0], bits[1], product == INT16));
            else {
                const __m256i ones = _mm256_set1_epi32(255), both = halves(_mm256_and_si256(bits[0], ones), _mm256_and_si256(bits[1], ones), 0);
                _mm_storeu_si128((__m128i *)part, _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
            }
            for (int64_t g = 0; g < 16 / each; g++) memcpy(to + (i / each + g) * lanes * 4, part + g, 4);
        }
        float length[3];
        const __m256 sums[3] = {square, gap, keep};
        for (int j = 0; j < 3; j++)
            length[j] = __builtin_sqrtf((float)sum_of(_mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(sums[j])),
                                                                    _mm256_cvtps_pd(_mm256_extractf128_ps(sums[j], 1)))));
        scales[n] = scale;
        const float bound = up * (length[0] * key_error + length[1] * key_norm + length[2] * key_norm * summing);
        if (bound > errors[q]) errors[q] = bound;
    }
}

/* AMX: 32 chunks x 32 tokens in four accumulators. The keys of 32 chunks stay in the cache while the tokens of a group pass by;
 * hardware prefetchers do not follow 32 rows at once, so each pair of token tiles asks for its share of the next 32. */
#define AMX_KERNEL(NAME, DOT, FLOATS, PRODUCT)                                                                                  \
    static AMX void NAME##_group(const Routing *r, int64_t from, int64_t to, uint8_t *copy) {                                   \
        float sums[4][16][16] __attribute__((aligned(64)));                                                                     \
        const int64_t steps = r->steps, pairs = (to - from + 1) / 2, rows = (SUB + pairs - 1) / pairs;                          \
        for (int64_t chunk = r->first; chunk < r->last; chunk += SUB) {                                                         \
            int64_t stride;                                                                                                     \
            const uint8_t *a = keys_at(r, chunk, SUB, PRODUCT, copy, &stride);                                                  \
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
                    const uint8_t *b0 = r->packed + t * steps * 1024, *b1 = t + 1 < stop ? b0 + steps * 1024 : b0;              \
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
                        _tile_loadd(6, b0 + s * 1024, 64);                                                                      \
                        _tile_loadd(7, b1 + s * 1024, 64);                                                                      \
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
                if (start >= stop) continue;                                                                                    \
                float peaks[SUB];                                                                                               \
                for (int i = 0; i < SUB; i++) peaks[i] = reduce_max_512(best[i]);                                               \
                raise_to(r, q, chunk, SUB, peaks);                                                                              \
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
        const int64_t tiles = r->tile_at[r->questions], most = group_tiles(r, 16);                                              \
        for (int64_t from = 0; from < tiles; from += most)                                                                      \
            NAME##_group(r, from, from + most < tiles ? from + most : tiles, copy);                                             \
        _tile_release();                                                                                                        \
        free(copy);                                                                                                             \
    }
#define AS_FLOATS(p) _mm512_load_ps(p)
#define INTS_AS_FLOATS(p) _mm512_cvtepi32_ps(_mm512_load_si512((const void *)(p)))
AMX_KERNEL(msa_amx_bf16, _tile_dpbf16ps, AS_FLOATS, BFLOAT16)
AMX_KERNEL(msa_amx_int8, _tile_dpbssd, INTS_AS_FLOATS, INT8)

/* Vectors of BITS: ROWS chunks x 2 tiles of tokens in registers. VNNI multiplies unsigned by signed bytes, so tokens come packed with
 * 128 added, and a chunk's sums start at -128 times the sum of its key, which takes that away again. AVX2 has no such product that cannot
 * overflow: there int8 keys are read as 16-bit numbers and tokens rounded to 14 bits. */
static inline VNNI void key_starts(const Routing *r, int64_t rows, const uint8_t *a, int64_t stride, int32_t *starts) {
    for (int64_t i = 0; i < rows; i++) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t s = 0; s < r->steps; s++)
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512((const void *)(a + i * stride + s * 64)));
        starts[i] = -128 * _mm512_reduce_add_epi32(sum);
    }
}
static inline void no_starts(const Routing *r, int64_t rows, const uint8_t *a, int64_t stride, int32_t *starts) {
    (void)r, (void)rows, (void)a, (void)stride, (void)starts;
}
#define VECTOR_BLOCK(NAME, TARGET, BITS, ROWS, SUM, START, STEP, FLOATS)                                                        \
    static inline __attribute__((always_inline)) TARGET void NAME(const Routing *r, const uint8_t *a, int64_t stride,           \
                                                                  const int32_t *starts, int64_t t, const int count,            \
                                                                  __m##BITS *best) {                                            \
        SUM sums[ROWS][2];                                                                                                      \
        (void)starts;                                                                                                           \
        const int64_t tile = r->steps * BITS * 2;                                                                               \
        const uint8_t *b = r->packed + t * tile;                                                                                \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                                                  \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) sums[i][j] = START(starts[i]);                              \
        for (int64_t g = 0; g < r->steps * 16; g++) {                                                                           \
            __m##BITS##i tokens[2];                                                                                             \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++)                                                             \
                tokens[j] = _mm##BITS##_loadu_si##BITS((const void *)(b + j * tile + g * (BITS / 8)));                          \
            _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++) {                                                            \
                int32_t group;                                                                                                  \
                memcpy(&group, a + i * stride + g * 4, 4);                                                                      \
                const __m##BITS##i key = _mm##BITS##_set1_epi32(group);                                                         \
                _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) sums[i][j] = STEP(sums[i][j], tokens[j], key);          \
            }                                                                                                                   \
        }                                                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                                                  \
            _Pragma("GCC unroll 2") for (int j = 0; j < count; j++) {                                                           \
                __m##BITS x = FLOATS(sums[i][j]);                                                                               \
                if (r->query_scales) x = _mm##BITS##_mul_ps(x, _mm##BITS##_loadu_ps(r->query_scales + (t + j) * (BITS / 32)));  \
                best[i] = _mm##BITS##_max_ps(best[i], x);                                                                       \
            }                                                                                                                   \
    }
#define VECTOR_KERNEL(NAME, TARGET, BITS, ROWS, PRODUCT, PART, STARTS)                                                          \
    TARGET void NAME(const Routing *r) {                                                                                        \
        uint8_t *copy = room(r, ROWS);                                                                                          \
        const int64_t tiles = r->tile_at[r->questions], most = group_tiles(r, BITS / 32);                                       \
        for (int64_t from = 0; from < tiles; from += most)                                                                      \
            for (int64_t chunk = r->first; chunk < r->last; chunk += ROWS) {                                                    \
                int64_t stride;                                                                                                 \
                const uint8_t *a = keys_at(r, chunk, ROWS, PRODUCT, copy, &stride);                                             \
                int32_t starts[ROWS] = {0};                                                                                     \
                STARTS(r, ROWS, a, stride, starts);                                                                             \
                for (int64_t q = 0; q < r->questions; q++) {                                                                    \
                    int64_t t = r->tile_at[q] > from ? r->tile_at[q] : from;                                                    \
                    const int64_t stop = r->tile_at[q + 1] < from + most ? r->tile_at[q + 1] : from + most;                     \
                    if (t >= stop) continue;                                                                                    \
                    __m##BITS best[ROWS];                                                                                       \
                    float peaks[ROWS];                                                                                          \
                    for (int i = 0; i < ROWS; i++) best[i] = _mm##BITS##_set1_ps(-__builtin_inff());                            \
                    for (; t + 2 <= stop; t += 2) PART(r, a, stride, starts, t, 2, best);                                       \
                    if (t < stop) PART(r, a, stride, starts, t, 1, best);                                                       \
                    for (int i = 0; i < ROWS; i++) peaks[i] = reduce_max_##BITS(best[i]);                                       \
                    raise_to(r, q, chunk, ROWS, peaks);                                                                         \
                }                                                                                                               \
            }                                                                                                                   \
        free(copy);                                                                                                             \
    }
#define ZERO_512(start) _mm512_setzero_ps()
#define ZERO_256(start) _mm256_setzero_ps()
#define STEP_BF16(sum, tokens, key) _mm512_dpbf16_ps(sum, (__m512bh)(tokens), (__m512bh)(key))
#define STEP_FLOAT32(sum, tokens, key) _mm256_fmadd_ps(_mm256_castsi256_ps(tokens), _mm256_castsi256_ps(key), sum)
#define STEP_INT16(sum, tokens, key) _mm256_add_epi32(sum, _mm256_madd_epi16(tokens, key))
#define SAME(x) (x)
VECTOR_BLOCK(bf16_block, BF16, 512, 6, __m512, ZERO_512, STEP_BF16, SAME)
VECTOR_BLOCK(vnni_block, VNNI, 512, 6, __m512i, _mm512_set1_epi32, _mm512_dpbusd_epi32, _mm512_cvtepi32_ps)
VECTOR_BLOCK(float32_block, AVX2, 256, 6, __m256, ZERO_256, STEP_FLOAT32, SAME)
VECTOR_BLOCK(int16_block, AVX2, 256, 4, __m256i, _mm256_set1_epi32, STEP_INT16, _mm256_cvtepi32_ps)
VECTOR_KERNEL(msa_avx512_bf16, BF16, 512, 6, BFLOAT16, bf16_block, no_starts)
VECTOR_KERNEL(msa_avx512_vnni, VNNI, 512, 6, INT8, vnni_block, key_starts)
VECTOR_KERNEL(msa_avx2_float32, AVX2, 256, 6, FLOAT32, float32_block, no_starts)
VECTOR_KERNEL(msa_avx2_int16, AVX2, 256, 4, INT16, int16_block, no_starts)

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
    int stored; /* their type */
    const float *key_scales;
    int64_t key_scale_step;
    const float *tokens; /* folded queries of tokens index[0] .. index[count - 1], `width` apart */
    const int64_t *index;
    int64_t count;
    int64_t *best, *best_ids; /* [k] */
    float *values;            /* [k] */
} Settle;

/* Score of one chunk, summed in float64 and rounded once, so that it does not depend on the order of the sums. */
static AVX2 float exact_score(const Settle *s, int64_t chunk, double *key) {
    const uint8_t *row = s->keys + chunk * s->stride;
    const __m256d scale = _mm256_set1_pd(s->key_scales ? s->key_scales[chunk * s->key_scale_step] : 1.0);
    for (int64_t i = 0; i < s->width; i += 8) {
        const __m256 x = floats(row, i, s->stored);
        _mm256_storeu_pd(key + i, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), scale));
        _mm256_storeu_pd(key + i + 4, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)), scale));
    }
    double best = -__builtin_inf();
    for (int64_t n = 0; n < s->count; n++) {
        const float *token = s->tokens + s->index[n] * s->width;
        __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
        for (int64_t i = 0; i < s->width; i += 16)
            for (int j = 0; j < 4; j++)
                sums[j] = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(token + i + 4 * j)), _mm256_loadu_pd(key + i + 4 * j), sums[j]);
        const double score = sum_of(_mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
        if (score > best) best = score;
    }
    return (float)best;
}

/* The chunks behind `chunk` that reach `floor`, at most `room` of them (8 at least), into `list`; the others are dropped. Returns how many,
 * and in `chunk` where to go on. */
static AVX2 int64_t reaching(const Settle *s, float floor, int64_t *chunk, int64_t *list, int64_t room) {
    const __m256 nothing = _mm256_set1_ps(-__builtin_inff()), least = _mm256_set1_ps(floor);
    int64_t listed = 0;
    for (; *chunk < s->chunks && listed + 8 <= room; *chunk += 8) {
        const int count = s->chunks - *chunk < 8 ? (int)(s->chunks - *chunk) : 8;
        const __m256i some = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        const __m256 scores = _mm256_maskload_ps(s->scores + *chunk, some), high = _mm256_cmp_ps(scores, least, _CMP_GE_OQ);
        _mm256_maskstore_ps(s->scores + *chunk, some, _mm256_blendv_ps(nothing, scores, high));
        for (int left = _mm256_movemask_ps(_mm256_and_ps(high, _mm256_castsi256_ps(some))); left; left &= left - 1)
            list[listed++] = *chunk + __builtin_ctz(left);
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
