// Deflation (deflate.py) on a CPU: the arithmetic of `deflate`, in two loops over each matrix.
//
// A matrix [rows, columns] is never transposed: with rows >= columns its rows meet P^T, with fewer its columns do, and
// the same three operations on a row serve both. Every sum is taken in an order that the shapes decide, so the result
// does not depend on the number of threads.
//
// Legend: R the rank, s the shorter side.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "threads.h"

namespace lopt {

constexpr float kGuard = 1e-25f, kKept = 1e-3f, kRidge = 1e-5f;  // as in moments.py and deflate.py
constexpr int64_t kPart = 1 << 16, kAlone = 1 << 17;             // weights of a part; those that are worth a thread
constexpr int64_t kParts = 16;                                   // of a matrix at most: each has sums of its own
constexpr int kLanes = 8;

struct Matrix {
    int64_t x, p;           // addresses: of the update [rows, columns]; of P^T [R, s]
    int64_t rows, columns;
    int64_t rank;
    int64_t tensor;         // to which of the sums of squares it belongs

    int64_t size() const { return rows * columns; }
    bool wide() const { return rows < columns; }
    int64_t shorter() const { return std::min(rows, columns); }
};

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector load(const float* x) { return *reinterpret_cast<const Vector*>(x); }
inline void store(float* x, Vector value) { *reinterpret_cast<Vector*>(x) = value; }

inline float sum(Vector x) {
    float total = 0;
    for (int l = 0; l < kLanes; ++l) total += x[l];
    return total;
}

// N rows x, x + n, .. of length n meet the R rows of v [R, n]. Each of the three returns the sum of squares of x at its
// end. Rows go in fours where there are as many: what is read of v then serves all of them.

// out[i][k] = x[i] . v[k].
template <int R, int N>
float dots(const float* __restrict x, const float* __restrict v, int64_t n, float (*out)[R]) {
    Vector sums[N][R] = {}, squares = {};
    float square = 0;
    const int64_t full = n - n % kLanes;
    for (int64_t j = 0; j < full; j += kLanes) {
        Vector y[N];
        for (int i = 0; i < N; ++i) y[i] = load(x + i * n + j), squares += y[i] * y[i];
        for (int k = 0; k < R; ++k) {
            const Vector w = load(v + k * n + j);
            for (int i = 0; i < N; ++i) sums[i][k] += y[i] * w;
        }
    }
    for (int i = 0; i < N; ++i) {
        for (int k = 0; k < R; ++k) out[i][k] = sum(sums[i][k]);
        for (int64_t j = full; j < n; ++j) {
            const float y = x[i * n + j];
            square += y * y;
            for (int k = 0; k < R; ++k) out[i][k] += y * v[k * n + j];
        }
    }
    return square + sum(squares);
}

// v[k] += sum_i a[i][k] x[i].
template <int R, int N>
float add_to(float* __restrict v, const float (*a)[R], const float* __restrict x, int64_t n) {
    Vector squares = {};
    float square = 0;
    const int64_t full = n - n % kLanes;
    for (int64_t j = 0; j < full; j += kLanes) {
        Vector y[N];
        for (int i = 0; i < N; ++i) y[i] = load(x + i * n + j), squares += y[i] * y[i];
        for (int k = 0; k < R; ++k) {
            Vector w = load(v + k * n + j);
            for (int i = 0; i < N; ++i) w += a[i][k] * y[i];
            store(v + k * n + j, w);
        }
    }
    for (int64_t j = full; j < n; ++j)
        for (int i = 0; i < N; ++i) {
            const float y = x[i * n + j];
            square += y * y;
            for (int k = 0; k < R; ++k) v[k * n + j] += a[i][k] * y;
        }
    return square + sum(squares);
}

// x[i] -= sum_k a[i][k] v[k].
template <int R, int N>
float take_from(float* __restrict x, const float (*a)[R], const float* __restrict v, int64_t n) {
    Vector squares = {};
    float square = 0;
    const int64_t full = n - n % kLanes;
    for (int64_t j = 0; j < full; j += kLanes) {
        Vector y[N];
        for (int i = 0; i < N; ++i) y[i] = load(x + i * n + j);
        for (int k = 0; k < R; ++k) {
            const Vector w = load(v + k * n + j);
            for (int i = 0; i < N; ++i) y[i] -= a[i][k] * w;
        }
        for (int i = 0; i < N; ++i) store(x + i * n + j, y[i]), squares += y[i] * y[i];
    }
    for (int64_t j = full; j < n; ++j)
        for (int i = 0; i < N; ++i) {
            float y = x[i * n + j];
            for (int k = 0; k < R; ++k) y -= a[i][k] * v[k * n + j];
            x[i * n + j] = y, square += y * y;
        }
    return square + sum(squares);
}

// Rows of v [rank, n] brought to norm 1; zeros stay zeros.
inline void unit(float* v, int rank, int64_t n) {
    for (int k = 0; k < rank; ++k) {
        float *row = v + k * n, unused[1][1];
        const float by = 1 / std::sqrt(dots<1, 1>(row, row, n, unused) + kGuard);
        for (int64_t j = 0; j < n; ++j) row[j] *= by;
    }
}

// The next P^T from y = (X^T Z)^T [R, s], which is changed.
template <int R>
void next_subspace(float* y, int64_t s, float* p) {
    unit(y, R, s);
    for (int64_t j = 0; j < R * s; ++j) y[j] += kKept * p[j];
    unit(y, R, s);
    // L L^T = y y^T + ridge; P^T = L^-1 y.
    float root[R][R];
    for (int i = 0; i < R; ++i) {
        float* row = p + i * s;
        std::copy_n(y + i * s, s, row);
        for (int k = 0; k <= i; ++k) {
            float product[1][1];
            dots<1, 1>(y + i * s, y + k * s, s, product);
            root[i][k] = product[0][0] + (i == k ? kRidge : 0);
            for (int h = 0; h < k; ++h) root[i][k] -= root[i][h] * root[k][h];
            root[i][k] = i == k ? std::sqrt(root[i][k]) : root[i][k] / root[k][k];
        }
        for (int k = 0; k < i; ++k)
            for (int64_t j = 0; j < s; ++j) row[j] -= root[i][k] * p[k * s + j];
        const float by = 1 / root[i][i];
        for (int64_t j = 0; j < s; ++j) row[j] *= by;
    }
}

// The first loop over N rows from `first`: z, and the sum of y over rows (tall) or z's (wide); squares: [R + 1], of the
// columns of z (tall), and of x.
template <int R, int N>
void look(const Matrix& m, int64_t first, const float* x, const float* p, float* z, float* sums, double* squares) {
    float a[N][R];
    if (m.wide()) {
        for (int i = 0; i < N; ++i)
            for (int k = 0; k < R; ++k) a[i][k] = p[k * m.rows + first + i];
        squares[R] += add_to<R, N>(sums, a, x, m.columns);
        return;
    }
    squares[R] += dots<R, N>(x, p, m.columns, a);
    for (int i = 0; i < N; ++i)
        for (int k = 0; k < R; ++k) z[(first + i) * R + k] = a[i][k], squares[k] += double(a[i][k]) * a[i][k];
    add_to<R, N>(sums, a, x, m.columns);
}

// The second loop over N rows from `first`: x, and y (wide); returns the squares of x.
template <int R, int N>
float change(const Matrix& m, int64_t first, float* x, const float* p, float* y, const float* z, const float* fall) {
    float a[N][R];
    if (!m.wide()) {
        for (int i = 0; i < N; ++i)
            for (int k = 0; k < R; ++k) a[i][k] = fall[k] * y[(first + i) * R + k];
        return take_from<R, N>(x, a, p, m.columns);
    }
    dots<R, N>(x, z, m.columns, a);
    for (int i = 0; i < N; ++i)
        for (int k = 0; k < R; ++k) {
            y[k * m.rows + first + i] = a[i][k];
            a[i][k] = fall[k] * p[k * m.rows + first + i];
        }
    return take_from<R, N>(x, a, z, m.columns);
}

// Deflates one matrix in place; returns the sum of its squares after that.
template <int R>
double deflate(const Matrix& m, int64_t threads) {
    float *x = reinterpret_cast<float*>(m.x), *p = reinterpret_cast<float*>(m.p);
    const int64_t n = m.columns, s = m.shorter(), summed = R * n;
    const int64_t parts = std::clamp<int64_t>(std::min(m.size() / kPart, m.rows / (4 * R)), 1, kParts);
    const int64_t height = ((m.rows + parts - 1) / parts + 3) / 4 * 4;
    const bool wide = m.wide();
    // Tall: z [rows, R], and y [R, columns] summed over parts. Wide: y [R, rows], and z [R, columns] summed over parts.
    std::unique_ptr<float[]> beside(new float[R * m.rows]);
    std::vector<float> sums(summed * parts);
    std::vector<double> squares((R + 1) * parts), left(parts);
    auto each = [&](int64_t part, auto&& four, auto&& one) {
        const int64_t last = std::min(m.rows, (part + 1) * height);
        int64_t i = part * height;
        for (; i + 3 < last; i += 4) four(i);
        for (; i < last; ++i) one(i);
    };
    spread(parts, threads, [&](int64_t part) {
        float* own = sums.data() + part * summed;
        double* found = squares.data() + part * (R + 1);
        each(part, [&](int64_t i) { look<R, 4>(m, i, x + i * n, p, beside.get(), own, found); },
             [&](int64_t i) { look<R, 1>(m, i, x + i * n, p, beside.get(), own, found); });
    });
    for (int64_t part = 1; part < parts; ++part) {
        for (int64_t j = 0; j < summed; ++j) sums[j] += sums[part * summed + j];
        for (int k = 0; k <= R; ++k) squares[k] += squares[part * (R + 1) + k];
    }
    float unused[1][1], fall[R];
    for (int k = 0; wide && k < R; ++k)
        squares[k] = dots<1, 1>(sums.data() + k * n, sums.data() + k * n, n, unused);
    double rest = squares[R];
    for (int k = 0; k < R; ++k) rest -= squares[k];
    rest = std::max(rest, 0.0) / (s - R);
    for (int k = 0; k < R; ++k) fall[k] = 1 - std::min(1.0, std::sqrt((rest + kGuard) / (squares[k] + kGuard)));
    spread(parts, threads, [&](int64_t part) {
        each(part, [&](int64_t i) { left[part] += change<R, 4>(m, i, x + i * n, p, beside.get(), sums.data(), fall); },
             [&](int64_t i) { left[part] += change<R, 1>(m, i, x + i * n, p, beside.get(), sums.data(), fall); });
    });
    next_subspace<R>(wide ? beside.get() : sums.data(), s, p);
    return std::accumulate(left.begin(), left.end(), 0.0);
}

inline double deflate(const Matrix& m, int64_t threads) {
    switch (m.rank) {
        case 1: return deflate<1>(m, threads);
        case 2: return deflate<2>(m, threads);
        case 3: return deflate<3>(m, threads);
        case 4: return deflate<4>(m, threads);
        case 5: return deflate<5>(m, threads);
        case 6: return deflate<6>(m, threads);
        case 7: return deflate<7>(m, threads);
        default: return deflate<8>(m, threads);
    }
}

}  // namespace lopt
