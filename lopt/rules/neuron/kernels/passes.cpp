// The two passes over memory of the Neuron rule on a CPU: the arithmetic of passes.py, in one loop each.
//
// The weights of all tensors are cut into parts, some rows of one tensor each, which threads take one after the other.
// Every sum is taken in an order that the parts decide, so the result does not depend on the number of threads.
//
// Legend: E entries without those of the tensors, E_r row entries, E_c column entries, T tensors.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "deflate.h"
#include "think.h"
#include "threads.h"

namespace {

using namespace lopt::mind;

constexpr int kRows = 8;

struct Part {
    int64_t tensor;
    int64_t first, last;    // rows of the form, counted over its batch
    int64_t rows, columns;  // of the form
    int64_t row, column;    // of the tensor: its first entry among the row entries, among the column entries
    int64_t beside;         // where this part's sums over its rows begin; -1: in the sums themselves
    int64_t out;            // of the tensor: where its update begins
};

struct Pointers {  // of T tensors each
    const int64_t *g, *m, *s, *v, *w;
    const int64_t* bfloat16;  // whether g and w are; else all are float32

    Pointers(const int64_t* table, int64_t n)
        : g(table), m(g + n), s(m + n), v(s + n), w(v + n), bfloat16(w + n) {}
};

float load(float x) { return x; }

float load(uint16_t x) {  // bfloat16
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
T* at(int64_t pointer, const Part& part) {
    return reinterpret_cast<T*>(pointer) + part.first * part.columns;
}

template <class T>
void advance_row(const T* __restrict g, float* __restrict m, float* __restrict s, float* __restrict v,
                 const T* __restrict w, const float* gains, int64_t n, float* const* columns, float* totals) {
    float *__restrict c0 = columns[0], *__restrict c1 = columns[1], *__restrict c2 = columns[2],
          *__restrict c3 = columns[3], *__restrict c4 = columns[4], *__restrict c5 = columns[5],
          *__restrict c6 = columns[6], *__restrict c7 = columns[7];
    const float gain_m = gains[0], gain_s = gains[1], gain_v = gains[2];
    float gg = 0, mm = 0, ww = 0, vs = 0, gm = 0, ms = 0, sw = 0, mean = 0;
#pragma omp simd reduction(+ : gg, mm, ww, vs, gm, ms, sw, mean)
    for (int64_t i = 0; i < n; ++i) {
        const float x = load(g[i]), y = load(w[i]), square = x * x;
        const float a = m[i] + gain_m * (x - m[i]), b = s[i] + gain_s * (x - s[i]);
        const float d = v[i] + gain_v * (square - v[i]);
        m[i] = a, s[i] = b, v[i] = d;
        gg += square, c0[i] += square;
        mm += a * a, c1[i] += a * a;
        ww += y * y, c2[i] += y * y;
        vs += d, c3[i] += d;
        gm += x * a, c4[i] += x * a;
        ms += a * b, c5[i] += a * b;
        sw += b * y, c6[i] += b * y;
        mean += a, c7[i] += a;
    }
    totals[GG] = gg, totals[MM] = mm, totals[WW] = ww, totals[V] = vs;
    totals[GM] = gm, totals[MS] = ms, totals[SW] = sw, totals[M] = mean;
}

template <class T>
void advance_part(const Part& p, const Pointers& to, const float* gains, float* sums, int64_t n_rows, int64_t n_entries,
                  float* beside) {
    const T *g = at<const T>(to.g[p.tensor], p), *w = at<const T>(to.w[p.tensor], p);
    float *m = at<float>(to.m[p.tensor], p), *s = at<float>(to.s[p.tensor], p), *v = at<float>(to.v[p.tensor], p);
    const int64_t n = p.columns, batch = p.first / p.rows, width = ((p.last - 1) / p.rows - batch + 1) * n;
    float* over_rows = p.beside < 0 ? sums + n_rows + p.column + batch * n : beside + p.beside;
    const int64_t stride = p.beside < 0 ? n_entries : width;
    for (int64_t r = p.first; r < p.last; ++r, g += n, m += n, s += n, v += n, w += n) {
        float totals[kMoments], *columns[kMoments];
        for (int k = 0; k < kMoments; ++k) columns[k] = over_rows + k * stride + (r / p.rows - batch) * n;
        advance_row(g, m, s, v, w, gains, n, columns, totals);
        for (int k = 0; k < kMoments; ++k) sums[k * n_entries + p.row + r] = totals[k];
    }
}

// The update of a row, not yet of RMS 1; returns the sum of its squares.
template <class T>
float combine_row(const T* __restrict g, const float* __restrict m, const float* __restrict s,
                  const float* __restrict v, const T* __restrict w, const float* a, float floor,
                  const float* __restrict c, const float* __restrict b, const float* __restrict d, int64_t n,
                  float* __restrict out) {
    const float of_g = a[0], of_m = a[1], of_s = a[2], of_w = a[3], plain = a[4], factored = a[5], k = a[6],
                shift = a[7];
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) {
        const float q = 1.0f / std::sqrt(v[i] * k + floor);
        const float u = b[i] * ((of_g * load(g[i]) + of_m * m[i] + of_s * s[i]) * q + of_w * load(w[i]) +
                                (plain + factored * c[i]) * m[i] + shift) + d[i];
        out[i] = u;
        squares += u * u;
    }
    return squares;
}

template <class T>
double combine_part(const Part& p, const Pointers& to, const float* rows, int64_t n_rows, const float* columns,
                    int64_t n_columns, float floor, float* out) {
    const T *g = at<const T>(to.g[p.tensor], p), *w = at<const T>(to.w[p.tensor], p);
    const float *m = at<float>(to.m[p.tensor], p), *s = at<float>(to.s[p.tensor], p);
    const float* v = at<float>(to.v[p.tensor], p);
    const int64_t n = p.columns;
    float* to_out = out + p.out + p.first * n;
    double squares = 0;
    for (int64_t r = p.first; r < p.last; ++r, g += n, m += n, s += n, v += n, w += n, to_out += n) {
        float a[kRows];
        for (int k = 0; k < kRows; ++k) a[k] = rows[k * n_rows + p.row + r];
        const float* c = columns + p.column + r / p.rows * n;
        squares += combine_row(g, m, s, v, w, a, floor, c, c + n_columns, c + 2 * n_columns, n, to_out);
    }
    return squares;
}

}  // namespace

extern "C" {

// The first pass. sums: [kMoments, E], zeros at first; beside: zeros at first.
void lopt_advance(const Part* parts, int64_t n_parts, const int64_t* table, int64_t n_tensors, const float* gains,
                  float* sums, int64_t n_rows, int64_t n_entries, float* beside, int64_t threads) {
    const Pointers to(table, n_tensors);
    lopt::spread(n_parts, threads, [&](int64_t i) {
        if (to.bfloat16[parts[i].tensor])
            advance_part<uint16_t>(parts[i], to, gains, sums, n_rows, n_entries, beside);
        else
            advance_part<float>(parts[i], to, gains, sums, n_rows, n_entries, beside);
    });
    for (int64_t i = 0; i < n_parts; ++i) {
        const Part& p = parts[i];
        if (p.beside < 0) continue;
        const int64_t batch = p.first / p.rows, width = ((p.last - 1) / p.rows - batch + 1) * p.columns;
        for (int k = 0; k < kMoments; ++k) {
            float* total = sums + k * n_entries + n_rows + p.column + batch * p.columns;
            const float* own = beside + p.beside + k * width;
            for (int64_t c = 0; c < width; ++c) total[c] += own[c];
        }
    }
}

// The second pass, of some parts. squares: [T], zeros at first, becomes the sums of squares of the updates.
void lopt_combine(const Part* parts, int64_t n_parts, const int64_t* table, int64_t n_tensors, const float* rows,
                  int64_t n_rows, const float* columns, int64_t n_columns, float floor, float* out, float* squares,
                  int64_t threads) {
    const Pointers to(table, n_tensors);
    std::vector<double> found(n_parts);
    lopt::spread(n_parts, threads, [&](int64_t i) {
        found[i] = to.bfloat16[parts[i].tensor]
                       ? combine_part<uint16_t>(parts[i], to, rows, n_rows, columns, n_columns, floor, out)
                       : combine_part<float>(parts[i], to, rows, n_rows, columns, n_columns, floor, out);
    });
    for (int64_t i = 0; i < n_parts; ++i) squares[parts[i].tensor] += static_cast<float>(found[i]);
}

// All between the passes: sums of the first and what is remembered (advanced) -> the plan of the second. Returns whether
// there was memory enough.
int64_t lopt_think(const lopt::mind::Space* space, const lopt::mind::Theta* theta, const lopt::mind::Clock* clock,
                const float* sums, float* const* steps, float* const* losses, float* rows, float* columns,
                float* scales, int64_t threads) {
    if (!space->tensors) return true;
    try {
        const lopt::mind::Tokens tokens(*space, *clock, sums, steps, losses, threads);
        const lopt::mind::Network network(*space, *theta, *clock, tokens, threads);
        lopt::mind::think(*space, tokens, network, threads, {rows, columns, scales});
    } catch (const std::bad_alloc&) {
        return false;
    }
    return true;
}

// Deflates updates in place. squares: [T], become the sums of squares of what comes out.
void lopt_deflate(const lopt::Matrix* matrices, int64_t n, float* squares, int64_t threads) {
    std::vector<double> found(n);
    std::vector<int64_t> small;
    int64_t together = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (matrices[i].size() < lopt::kAlone)
            small.push_back(i), together += matrices[i].size();
        else
            found[i] = lopt::deflate(matrices[i], threads);
    }
    lopt::spread(small.size(), together < lopt::kAlone ? 1 : threads,
                 [&](int64_t k) { found[small[k]] = lopt::deflate(matrices[small[k]], 1); });
    for (int64_t i = 0; i < n; ++i) squares[matrices[i].tensor] = 0;
    for (int64_t i = 0; i < n; ++i) squares[matrices[i].tensor] += static_cast<float>(found[i]);
}
}
