// What `matrix` multiplies: 16×16 blocks in half precision, added in f32, on the GPU's matrix units.
enable f16;
enable wgpu_cooperative_matrix;
