// A step of PerParameter on a CPU: the arithmetic of rule.py for the tensors of one call, in two passes over them.
//
// The first advances the momenta and takes the squares of every channel, the second runs the MLP. Its unit is a strip
// of 24 weights, which lie along the lanes of the vectors: four channels of a layer are 12 vectors of sums, which stay
// in registers, and the strip with all matrices stays in the first cache.
//
// Weights are cut into parts that threads take one after the other. Every sum is taken in an order that the parts
// decide, so the result does not depend on the number of threads.
//
// Legend: T tensors, C weight-shaped channels (w, g, D momenta), c width, padded with zeros to a multiple of the tile.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace {

constexpr int64_t kDecays = 6, kChannels = 2 + kDecays, kBase = 2;  // kBase: the momentum that the update is built on
constexpr int64_t kLanes = 8, kVectors = 3, kStrip = kLanes * kVectors, kTile = 4;
constexpr int64_t kPart = 256 * kStrip;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

struct Row {  // one channel of a strip
    Lanes lanes[kVectors];
};

struct Part {
    int64_t tensor, first, last;  // weights of the tensor
    int64_t out;                  // where their updates begin
};

struct Pointers {  // of T tensors each
    const int64_t *w, *g, *momenta, *sizes;

    Pointers(const int64_t* table, int64_t n) : w(table), g(w + n), momenta(g + n), sizes(momenta + n) {}
};

// The network as `packed` in cpu.py lays it out. The weights of a layer: tile after tile, [inputs, kTile] each.
struct Network {
    const float *decays, *gains, *head, *first, *rest;
    float alpha, head_bias, guard;
    int64_t width, layers;  // layers: hidden ones beyond the first

    Network(const float* x, int64_t width, int64_t layers)
        : decays(x + 3), gains(decays + kDecays), head(gains + kDecays), first(head + width),
          rest(first + width * kChannels + width), alpha(x[0]), head_bias(x[1]), guard(x[2]), width(width),
          layers(layers) {}
};

// m <- decay m + gain g for n weights; adds to the sums of squares of their channels.
void advance(const float* w, const float* g, float* m, int64_t n, const Network& net, double* squares) {
    float decays[kDecays], gains[kDecays];
    std::copy_n(net.decays, kDecays, decays), std::copy_n(net.gains, kDecays, gains);
    for (int64_t begin = 0; begin < n; begin += kStrip) {
        float sums[kChannels] = {};
        for (int64_t i = begin; i < std::min(n, begin + kStrip); ++i) {
            sums[0] += w[i] * w[i], sums[1] += g[i] * g[i];
            for (int64_t d = 0; d < kDecays; ++d) {
                const float x = decays[d] * m[kDecays * i + d] + gains[d] * g[i];
                m[kDecays * i + d] = x, sums[2 + d] += x * x;
            }
        }
        for (int64_t c = 0; c < kChannels; ++c) squares[c] += sums[c];
    }
}

// relu(W x + b) of one tile. A NaN stays one.
inline void tile(const float* weight, const float* bias, const Row* x, int64_t inputs, Row* y) {
    Lanes sums[kTile][kVectors];
    for (int o = 0; o < kTile; ++o)
        for (int v = 0; v < kVectors; ++v) sums[o][v] = Lanes{} + bias[o];
    for (int64_t k = 0; k < inputs; ++k, weight += kTile)
        for (int o = 0; o < kTile; ++o)
            for (int v = 0; v < kVectors; ++v) sums[o][v] += weight[o] * x[k].lanes[v];
    for (int o = 0; o < kTile; ++o)
        for (int v = 0; v < kVectors; ++v) y[o].lanes[v] = sums[o][v] < 0.0f ? Lanes{} : sums[o][v];
}

void layer(const float* weight, const float* bias, const Row* x, int64_t inputs, Row* y, int64_t width) {
    for (int64_t o = 0; o < width; o += kTile) tile(weight + o * inputs, bias + o, x, inputs, y + o);
}

// Weights, gradients and momenta of a strip, channel after channel; what lacks to a whole strip is zero.
void read(const float* w, const float* g, const float* m, int64_t n, Row* x) {
    float* to = reinterpret_cast<float*>(x);
    if (n < kStrip) std::fill_n(to, kChannels * kStrip, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
        to[i] = w[i], to[kStrip + i] = g[i];
        for (int64_t d = 0; d < kDecays; ++d) to[(2 + d) * kStrip + i] = m[kDecays * i + d];
    }
}

// alpha m_0.9 + alpha beta MLP of n weights; the last two stand in head and head_bias.
void combine(const float* w, const float* g, const float* m, int64_t n, const Network& net, const float* scales,
             float* out) {
    std::vector<float> first(net.first, net.first + net.width * kChannels);
    for (int64_t i = 0; i < net.width * kChannels; ++i) first[i] *= scales[i / kTile % kChannels];
    std::vector<Row> x(kChannels), y(net.width), z(net.width);
    for (int64_t begin = 0; begin < n; begin += kStrip) {
        const int64_t count = std::min(kStrip, n - begin);
        read(w + begin, g + begin, m + kDecays * begin, count, x.data());
        layer(first.data(), net.first + net.width * kChannels, x.data(), kChannels, y.data(), net.width);
        const float* weight = net.rest;
        for (int64_t l = 0; l < net.layers; ++l, weight += net.width * (net.width + 1), y.swap(z))
            layer(weight, weight + net.width * net.width, y.data(), net.width, z.data(), net.width);
        Row u;
        for (int v = 0; v < kVectors; ++v) u.lanes[v] = net.head_bias + net.alpha * x[2 + kBase].lanes[v];
        for (int64_t k = 0; k < net.width; ++k)
            for (int v = 0; v < kVectors; ++v) u.lanes[v] += net.head[k] * y[k].lanes[v];
        std::copy_n(reinterpret_cast<const float*>(&u), count, out + begin);
    }
}

std::vector<Part> parts_of(const Pointers& to, int64_t n_tensors) {
    std::vector<Part> parts;
    int64_t out = 0;
    for (int64_t t = 0; t < n_tensors; out += to.sizes[t++])
        for (int64_t first = 0; first < to.sizes[t]; first += kPart)
            parts.push_back({t, first, std::min(to.sizes[t], first + kPart), out + first});
    return parts;
}

}  // namespace

// Advances the momenta of some tensors and writes their updates, one tensor after the other.
extern "C" void lopt_per_parameter(const int64_t* table, int64_t n_tensors, const float* packed, int64_t width,
                                   int64_t layers, float* out, int64_t threads) {
    const Pointers to(table, n_tensors);
    const Network net(packed, width, layers);
    const std::vector<Part> parts = parts_of(to, n_tensors);
    const int64_t n_parts = static_cast<int64_t>(parts.size());
    const auto w = [&](const Part& p) { return reinterpret_cast<const float*>(to.w[p.tensor]) + p.first; };
    const auto g = [&](const Part& p) { return reinterpret_cast<const float*>(to.g[p.tensor]) + p.first; };
    const auto momenta = [&](const Part& p) {
        return reinterpret_cast<float*>(to.momenta[p.tensor]) + kDecays * p.first;
    };

    std::vector<double> squares(n_parts * kChannels), totals(n_tensors * kChannels);
    lopt::spread(n_parts, threads, [&](int64_t i) {
        const Part& p = parts[i];
        advance(w(p), g(p), momenta(p), p.last - p.first, net, &squares[i * kChannels]);
    });
    for (int64_t i = 0; i < n_parts; ++i)
        for (int64_t c = 0; c < kChannels; ++c) totals[parts[i].tensor * kChannels + c] += squares[i * kChannels + c];
    lopt::spread(n_parts, threads, [&](int64_t i) {
        const Part& p = parts[i];
        float scales[kChannels];
        for (int64_t c = 0; c < kChannels; ++c) {
            const double mean = totals[p.tensor * kChannels + c] / static_cast<double>(to.sizes[p.tensor]);
            scales[c] = 1.0f / std::sqrt(static_cast<float>(mean) + net.guard);
        }
        combine(w(p), g(p), momenta(p), p.last - p.first, net, scales, out + p.out);
    });
}
