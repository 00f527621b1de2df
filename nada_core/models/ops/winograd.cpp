// 3x3 convolution with padding 1 by Winograd's F(4x4, 3x3) in float32 (Lavin and Gray, arXiv:1509.09308, sections 4.1
// and 4.3), forward and backward.
//
// The image is split into overlapping tiles of 6x6 pixels with stride 4. After the input transform, each of the 36
// positions of a tile is an independent matrix product over the channels, with a quarter of the multiplications of the
// direct method. The output transform gives 4x4 pixels per tile. The weight gradient uses the adjoint transforms.
//
// Shapes: N batch, I and O input and output channels, H and W pixels, P positions in a tile. A product sums over the
// length L. Its left factor is stored in panels of M rows, [P, rows / M, L, M], its right one in panels of K columns,
// [P, columns / K, L, K], so that both are read sequentially. A band is a row of tiles; a chunk is as many bands as fit
// the caches.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using at::Tensor;

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, M = 8;
#else
constexpr int64_t LANES = 8, M = 4;
#endif
constexpr int64_t K = 2 * LANES, P = 36;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// ---- transforms of one row or column of a tile --------------------------------------------------------------------

// B^T, of input pixels.
inline void input_transform(const float* x, float* y) {
  const float even = x[4] - 4 * x[2], odd = x[3] - 4 * x[1], near = x[4] - x[2], far = 2 * (x[3] - x[1]);
  y[0] = 4 * x[0] - 5 * x[2] + x[4];
  y[1] = even + odd;
  y[2] = even - odd;
  y[3] = near + far;
  y[4] = near - far;
  y[5] = 4 * x[1] - 5 * x[3] + x[5];
}

// G, of a filter.
inline void filter_transform(const float* x, float* y) {
  const float ends = x[0] + x[2], wide = x[0] + 4 * x[2];
  y[0] = x[0] * 0.25f;
  y[1] = (ends + x[1]) * (-1.0f / 6);
  y[2] = (ends - x[1]) * (-1.0f / 6);
  y[3] = (wide + 2 * x[1]) * (1.0f / 24);
  y[4] = (wide - 2 * x[1]) * (1.0f / 24);
  y[5] = x[2];
}

// G^T, of the gradient of a filter.
inline void filter_adjoint(const float* x, float* y) {
  const float near = x[1] + x[2], far = x[3] + x[4];
  y[0] = x[0] * 0.25f - near * (1.0f / 6) + far * (1.0f / 24);
  y[1] = (x[2] - x[1]) * (1.0f / 6) + (x[3] - x[4]) * (1.0f / 12);
  y[2] = (far - near) * (1.0f / 6) + x[5];
}

// A^T, to output pixels.
inline void output_transform(const float* x, float* y) {
  const float sum = x[1] + x[2], difference = x[1] - x[2], far = x[3] + x[4], step = x[3] - x[4];
  y[0] = x[0] + sum + far;
  y[1] = difference + 2 * step;
  y[2] = sum + 4 * far;
  y[3] = difference + 8 * step + x[5];
}

// A, of the gradient of output pixels.
inline void output_adjoint(const float* x, float* y) {
  const float even = x[0] + x[2], odd = x[1] + x[3], far = x[0] + 4 * x[2], step = 2 * x[1] + 8 * x[3];
  y[0] = x[0];
  y[1] = even + odd;
  y[2] = even - odd;
  y[3] = far + step;
  y[4] = far - step;
  y[5] = x[3];
}

// Transform `count` vectors; element r of each is in row r of `from` and of `to`.
template <void (*transform)(const float*, float*), int in, int out>
inline void each(const float* const* from, float* const* to, int64_t count, int64_t apart = 1) {
  const float* rows[in];
  float* results[out];
  std::copy_n(from, in, rows);
  std::copy_n(to, out, results);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float x[in], y[out];
    for (int r = 0; r < in; ++r) x[r] = rows[r][i];
    transform(x, y);
    for (int r = 0; r < out; ++r) results[r][i * apart] = y[r];
  }
}

// ---- factors ------------------------------------------------------------------------------------------------------

struct Image {  // [N, channels, H, W], cut into tiles
  const float* pixels;
  int64_t n, channels, h, w, rows, columns;

  explicit Image(const Tensor& x)
      : pixels(x.const_data_ptr<float>()), n(x.size(0)), channels(x.size(1)), h(x.size(2)), w(x.size(3)),
        rows(ceil_div(h, 4)), columns(ceil_div(w, 4)) {}

  int64_t bands() const { return n * rows; }
  int64_t plane(int64_t band, int64_t channel) const { return (band / rows * channels + channel) * h * w; }
};

struct Chunk {
  int64_t first, last, tiles;

  Chunk(const Image& image, int64_t first, int64_t step)
      : first(first), last(std::min(first + step, image.bands())), tiles((last - first) * image.columns) {}
};

// Bands per chunk; channels: of both factors and the result together.
int64_t bands_per_chunk(const Image& image, int64_t channels) {
  const int64_t floats = (int64_t{24} << 20) / sizeof(float);
  return std::clamp<int64_t>(floats / (P * channels * image.columns), 1, image.bands());
}

// Transform one channel of a band to out [P, columns]. size 6: overlapping tiles, by B^T; size 4: disjoint tiles, by A.
// scratch: `scratch_size(image)` floats.
int64_t scratch_size(const Image& image) { return 12 * (4 * image.columns + 2); }

template <int size>
void tiles(const Image& image, int64_t band, int64_t channel, float* out, float* scratch) {
  constexpr auto transform = size == 6 ? input_transform : output_adjoint;
  constexpr int border = size == 6 ? 1 : 0;
  const int64_t count = image.columns, width = 4 * count + 2 * border;
  const float *plane = image.pixels + image.plane(band, channel), *lines[size];
  float* turned[6];
  for (int r = 0; r < size; ++r) {
    float* line = scratch + r * width;
    const int64_t y = 4 * (band % image.rows) + r - border;
    std::fill_n(line, width, 0.0f);
    if (y >= 0 && y < image.h) std::memcpy(line + border, plane + y * image.w, image.w * sizeof(float));
    lines[r] = line;
  }
  for (int r = 0; r < 6; ++r) turned[r] = scratch + (6 + r) * width;
  each<transform, size, 6>(lines, turned, width);
  float* apart = scratch;  // [4, columns + 1]: every fourth pixel; overwrites the lines
  const int64_t next = count + 1;
  for (int r = 0; r < 6; ++r) {
    for (int64_t i = 0; i < count; ++i)
      for (int c = 0; c < 4; ++c) apart[c * next + i] = turned[r][4 * i + c];
    if (border)
      for (int c = 0; c < 2; ++c) apart[c * next + count] = turned[r][4 * count + c];
    const float* from[6] = {apart, apart + next, apart + 2 * next, apart + 3 * next, apart + 1, apart + next + 1};
    float* to[6];
    for (int c = 0; c < 6; ++c) to[c] = out + (6 * r + c) * count;
    each<transform, size, 6>(from, to, count);
  }
}

// Store tiles as the columns of a product over channels: to [P, tiles / K, channels, K].
void tiles_as_columns(const Image& image, const Chunk& chunk, float* to) {
  const int64_t bands = chunk.last - chunk.first, plane = ceil_div(chunk.tiles, K) * image.channels * K;
  at::parallel_for(0, image.channels * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> out(P * image.columns), scratch(scratch_size(image));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t channel = job / bands, band = job % bands;
      tiles<6>(image, chunk.first + band, channel, out.data(), scratch.data());
      for (int64_t done = 0; done < image.columns;) {  // a panel may end inside a band
        const int64_t column = band * image.columns + done, run = std::min(K - column % K, image.columns - done);
        float* place = to + (column / K * image.channels + channel) * K + column % K;
        for (int64_t p = 0; p < P; ++p)
          std::memcpy(place + p * plane, &out[p * image.columns + done], run * sizeof(float));
        done += run;
      }
    }
  });
}

// Store tiles as the length of a product between channels, in panels of `width`: to
// [P, channels / width, tiles, width].
template <int size, int64_t width>
void tiles_as_length(const Image& image, const Chunk& chunk, float* to) {
  const int64_t bands = chunk.last - chunk.first, panels = ceil_div(image.channels, width), count = image.columns;
  at::parallel_for(0, panels * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> out(width * P * count), scratch(scratch_size(image));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t panel = job / bands, band = job % bands;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = panel * width + c;
        if (channel < image.channels)
          tiles<size>(image, chunk.first + band, channel, &out[c * P * count], scratch.data());
        else
          std::fill_n(&out[c * P * count], P * count, 0.0f);
      }
      for (int64_t p = 0; p < P; ++p) {
        float* place = to + ((p * panels + panel) * chunk.tiles + band * count) * width;
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < width; ++c) place[i * width + c] = out[(c * P + p) * count + i];
      }
    }
  });
}

// Transform filters [O, I, 3, 3] to the left factor [P, O / M, I, M]. transposed: filters of the input gradient,
// rotated by 180 degrees with I and O exchanged; o and i are then the channels of that gradient's product.
void filters(const float* weight, int64_t o, int64_t i, bool transposed, float* to) {
  constexpr int64_t block = 16, width = block * M;  // rows long enough for sequential writes
  const int64_t panels = ceil_div(o, M), blocks = ceil_div(i, block), plane = panels * i * M;
  at::parallel_for(0, panels * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch((9 + 18 + 36) * width);
    float *taps = scratch.data(), *half = taps + 9 * width, *whole = half + 18 * width;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t panel = job / blocks, first = job % blocks * block, count = std::min(block, i - first);
      std::fill_n(taps, 9 * width, 0.0f);
      for (int64_t m = 0; m < std::min(M, o - panel * M); ++m)
        for (int64_t n = 0; n < count; ++n) {
          const int64_t out = panel * M + m, in = first + n;
          const float* filter = weight + (transposed ? in * o + out : out * i + in) * 9;
          for (int k = 0; k < 9; ++k) taps[k * width + n * M + m] = filter[transposed ? 8 - k : k];
        }
      for (int c = 0; c < 3; ++c) {
        const float* from[3];
        float* down[6];
        for (int r = 0; r < 3; ++r) from[r] = taps + (3 * r + c) * width;
        for (int r = 0; r < 6; ++r) down[r] = half + (3 * r + c) * width;
        each<filter_transform, 3, 6>(from, down, width);
      }
      for (int r = 0; r < 6; ++r) {
        const float* from[3];
        float* across[6];
        for (int c = 0; c < 3; ++c) from[c] = half + (3 * r + c) * width;
        for (int c = 0; c < 6; ++c) across[c] = whole + (6 * r + c) * width;
        each<filter_transform, 3, 6>(from, across, width);
      }
      for (int64_t p = 0; p < P; ++p)
        std::memcpy(to + p * plane + (panel * i + first) * M, whole + p * width, count * M * sizeof(float));
    }
  });
}

// ---- products -----------------------------------------------------------------------------------------------------

// Multiply two panels; sums [M, K] with rows `stride` apart are overwritten or accumulated.
void product(const float* left, const float* right, int64_t length, float* sums, int64_t stride, bool add) {
  Lanes sum[M][2] = {};
  for (int64_t l = 0; l < length; ++l, left += M, right += K) {
    const Lanes a = *reinterpret_cast<const Lanes*>(right), b = *reinterpret_cast<const Lanes*>(right + LANES);
#pragma GCC unroll 8
    for (int64_t m = 0; m < M; ++m) {
      sum[m][0] += left[m] * a;
      sum[m][1] += left[m] * b;
    }
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t half = 0; half < 2; ++half) {
      Lanes& to = *reinterpret_cast<Lanes*>(sums + m * stride + half * LANES);
      to = add ? to + sum[m][half] : sum[m][half];
    }
}

// Multiply all panels: sums [P, rows, columns], both multiples of the panel sizes.
void products(const float* left, int64_t rows, const float* right, int64_t columns, int64_t length, float* sums,
              bool add) {
  const int64_t down = rows / M, across = columns / K;
  at::parallel_for(0, P * down, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job)
      for (int64_t k = 0; k < across; ++k)
        product(left + job * length * M, right + (job / down * across + k) * length * K, length,
                sums + job * M * columns + k * K, columns, add);
  });
}

// ---- operators ----------------------------------------------------------------------------------------------------

// Convolve x [N, I, H, W] with weight [O, I, 3, 3] to [N, O, H, W]. transposed: x is the gradient [N, O, H, W] of the
// output, and the result [N, I, H, W] that of the input.
Tensor convolve(const Tensor& x, const Tensor& weight, bool transposed) {
  const Image image(x);
  const int64_t i = image.channels, o = weight.size(transposed ? 1 : 0), rows = ceil_div(o, M) * M, t = image.columns;
  const int64_t step = bands_per_chunk(image, i + rows), widest = ceil_div(step * t, K) * K;
  Tensor out = at::empty({image.n, o, image.h, image.w}, x.options());
  Tensor left = at::empty({P * rows * i}, x.options()), right = at::zeros({P * i * widest}, x.options());
  Tensor sums = at::empty({P * rows * widest}, x.options());
  const Image made(out);
  float *u = left.data_ptr<float>(), *v = right.data_ptr<float>(), *s = sums.data_ptr<float>();
  float* pixels = out.data_ptr<float>();
  filters(weight.const_data_ptr<float>(), o, i, transposed, u);
  for (int64_t first = 0; first < image.bands(); first += step) {
    const Chunk chunk(image, first, step);
    const int64_t bands = chunk.last - first, columns = ceil_div(chunk.tiles, K) * K;
    tiles_as_columns(image, chunk, v);
    products(u, rows, v, columns, i, s, false);
    at::parallel_for(0, o * bands, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch((24 + 4) * t);
      float *down = scratch.data(), *across = down + 24 * t;
      for (int64_t job = begin; job < end; ++job) {
        const int64_t channel = job / bands, band = job % bands, y = 4 * ((first + band) % image.rows);
        for (int c = 0; c < 6; ++c) {
          const float* from[6];
          float* to[4];
          for (int r = 0; r < 6; ++r) from[r] = s + ((6 * r + c) * rows + channel) * columns + band * t;
          for (int r = 0; r < 4; ++r) to[r] = down + (6 * r + c) * t;
          each<output_transform, 6, 4>(from, to, t);
        }
        for (int r = 0; r < 4 && y + r < image.h; ++r) {
          const float* from[6];
          float *to[4], *line = pixels + made.plane(first + band, channel) + (y + r) * image.w;
          for (int c = 0; c < 6; ++c) from[c] = down + (6 * r + c) * t;
          for (int c = 0; c < 4; ++c) to[c] = across + c * t;
          each<output_transform, 6, 4>(from, to, t);
          const int64_t whole = image.w / 4;
          for (int64_t k = 0; k < whole; ++k)
            for (int c = 0; c < 4; ++c) line[4 * k + c] = across[c * t + k];
          for (int64_t x = 4 * whole; x < image.w; ++x) line[x] = across[x % 4 * t + whole];
        }
      }
    });
  }
  return out;
}

// Weight gradient [O, I, 3, 3] of input x [N, I, H, W] and output gradient grad [N, O, H, W].
Tensor weight_gradient(const Tensor& x, const Tensor& grad) {
  const Image image(x), output_grad(grad);
  const int64_t i = image.channels, o = output_grad.channels, rows = ceil_div(o, M) * M, columns = ceil_div(i, K) * K;
  const int64_t step = bands_per_chunk(image, rows + columns), most = step * image.columns;
  Tensor left = at::empty({P * rows * most}, x.options()), right = at::empty({P * columns * most}, x.options());
  Tensor sums = at::empty({P * rows * columns}, x.options()), out = at::empty({o, i, 3, 3}, x.options());
  float *u = left.data_ptr<float>(), *v = right.data_ptr<float>(), *s = sums.data_ptr<float>();
  float* gradient = out.data_ptr<float>();
  for (int64_t first = 0; first < image.bands(); first += step) {
    const Chunk chunk(image, first, step);
    tiles_as_length<4, M>(output_grad, chunk, u);
    tiles_as_length<6, K>(image, chunk, v);
    products(u, rows, v, columns, chunk.tiles, s, first > 0);
  }
  at::parallel_for(0, o, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> half(18 * columns);
    for (int64_t row = begin; row < end; ++row) {
      const float* from[6];
      float* to[3];
      for (int c = 0; c < 6; ++c) {
        for (int r = 0; r < 6; ++r) from[r] = s + ((6 * r + c) * rows + row) * columns;
        for (int r = 0; r < 3; ++r) to[r] = &half[(6 * r + c) * columns];
        each<filter_adjoint, 6, 3>(from, to, i);
      }
      for (int r = 0; r < 3; ++r) {
        for (int c = 0; c < 6; ++c) from[c] = &half[(6 * r + c) * columns];
        for (int c = 0; c < 3; ++c) to[c] = gradient + row * i * 9 + 3 * r + c;
        each<filter_adjoint, 6, 3>(from, to, i, 9);
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(nada_winograd, library) {
  library.def("convolve(Tensor x, Tensor weight, bool transposed) -> Tensor");
  library.def("weight_gradient(Tensor x, Tensor grad) -> Tensor");
}

TORCH_LIBRARY_IMPL(nada_winograd, CPU, library) {
  library.impl("convolve", convolve);
  library.impl("weight_gradient", weight_gradient);
}
