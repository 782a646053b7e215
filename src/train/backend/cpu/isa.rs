//! Which vector instructions the kernels use: chosen once, at run time, from what the CPU has.
//!
//! `HONE_CPU` forces a lower level, for tests and for comparisons: `bf16`, `avx512`, `avx2` or
//! `portable`.

/// A level of vector instructions (instruction set architecture); each kernel exists for each level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, which the compiler may vectorise for the build target.
    Portable,
    /// AVX2 and FMA: eight floats at a time.
    Avx2,
    /// AVX-512: sixteen floats at a time.
    Avx512,
    /// AVX-512 with bfloat16 dot products, for matrix products; everything else as `Avx512`.
    Bf16,
}

impl Isa {
    /// Every level, lowest first.
    pub const ALL: [Isa; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Bf16];

    /// The name in `HONE_CPU`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Bf16 => "bf16",
        }
    }

    /// The highest level that this CPU has.
    pub fn best() -> Self {
        let mut best = Self::Portable;
        for isa in Self::ALL {
            if isa.is_available() {
                best = isa;
            }
        }
        best
    }

    /// Whether this CPU has the level.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 =
                avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx512,
                Self::Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The level to use: the one that `HONE_CPU` names, otherwise the best of this CPU.
    ///
    /// # Errors
    /// When `HONE_CPU` names no level, or one that this CPU does not have.
    pub fn choose() -> Result<Self, String> {
        let Ok(name) = std::env::var("HONE_CPU") else {
            return Ok(Self::best());
        };
        let Some(isa) = Self::ALL.into_iter().find(|isa| isa.name() == name) else {
            return Err(format!("HONE_CPU is {name:?}; it can be bf16, avx512, avx2 or portable"));
        };
        if !isa.is_available() {
            return Err(format!(
                "HONE_CPU is {name:?}, which this CPU does not have; its best is {:?}",
                Self::best().name()
            ));
        }
        Ok(isa)
    }

    /// The level for 32-bit arithmetic, where `Bf16` adds nothing.
    pub fn for_f32(self) -> Self {
        self.min(Self::Avx512)
    }
}
