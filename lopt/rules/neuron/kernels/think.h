// What happens between the two passes, on a CPU: think.py in one call.
//
// All arithmetic is in float but for sums over many neurons or rows. Neurons and entries go in blocks, which threads
// take one after the other; every sum is taken in an order that the network decides, so the result does not depend on
// the number of threads.
//
// Legend: E entries without those of the tensors, E_r row entries, E_c column entries, T tensors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "elementary.h"
#include "mind.h"
#include "network.h"
#include "tokens.h"

namespace lopt {
namespace mind {

enum { CENTRE_ROWS = 6, CENTRE_COLUMNS, SCALE, ANNEAL };
constexpr float kDown = 3.0f, kUp = 1.0f, kTen = 2.302585093f;  // decades of the scale; log 10

struct Plan {  // as in combine.py: [8, E_r], [3, E_c], [T]
    float *rows, *columns, *scales;
};

inline float bounded_scale(float x) {
    const float kappa = (kDown + kUp) / (kDown * kUp * kTen);
    const float sigmoid = 1 / (1 + std::exp(-(kappa * x + std::log(kDown / kUp))));
    return std::exp(kTen * ((kDown + kUp) * sigmoid - kDown));
}

// `make_plan` of combine.py.
inline void think(const Space& s, const Tokens& tokens, const Network& network, int64_t threads, const Plan& out) {
    const int64_t n = s.tensors, columns = s.entries - s.rows;
    std::vector<float> number(kMoments * n), roots(n);
    const float rest = tokens.log_rest();
    for (int64_t t = 0; t < n; ++t) {
        const float* h = network.coefficient.data() + t * kCoefficients;
        const float m = tokens.logs[MM * n + t], v = tokens.logs[V * n + t];
        const float dm = tokens.debias[t], ds = tokens.debias[n + t], dv = tokens.debias[2 * n + t];
        const float size = 0.5f * (m - v), half = 0.5f * v, base = -dm - half;
        const float known = tokens.mean[MM * n + t] * std::exp(-m);
        const float found[kMoments] = {
            std::exp(size - half) * h[0],
            std::exp(base) * (1 + h[1]),
            std::exp(-ds - half) * h[2],
            std::exp(size - 0.5f * tokens.logs[WW * n + t]) * (h[3] * known),
            std::exp(base) * h[4],
            std::exp(-dm) * h[5],
            std::exp(-v - dv),
            h[CENTRE_ROWS],
        };
        for (int k = 0; k < kMoments; ++k) number[k * n + t] = found[k];
        roots[t] = std::exp(half);
        const float fall = std::exp(h[ANNEAL] * rest + network.share);
        out.scales[t] = std::min(bounded_scale(h[SCALE] + network.law[t]) * fall, std::pow(10.0f, kUp));
    }
    in_blocks(s.entries, threads, [&](int64_t first, int64_t last) {
        for (int64_t e = first; e < last; ++e) {
            const int64_t t = s.tensor[e];
            float factor;
            s.to_entries.one(e, network.correction.data(), 1, &factor);
            factor = exponential(factor);
            const float r = tokens.root[e], centre = factor * tokens.centre[e];
            if (e < s.rows) {
                for (int k = 0; k < 5; ++k) out.rows[k * s.rows + e] = number[k * n + t] * factor;
                out.rows[5 * s.rows + e] = number[5 * n + t] * (factor * (r * roots[t]));
                out.rows[6 * s.rows + e] = number[6 * n + t];
                out.rows[7 * s.rows + e] = number[7 * n + t] * centre;
            } else {
                const int64_t column = e - s.rows;
                out.columns[column] = r;
                out.columns[columns + column] = factor;
                out.columns[2 * columns + column] = centre * network.coefficient[t * kCoefficients + CENTRE_COLUMNS];
            }
        }
    });
}

}  // namespace mind
}  // namespace lopt
