//! A whole model in Hugging Face's layout: the names of its files, and its weights written tensor by tensor,
//! so that they are in memory only once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// The folder of a whole model below that of a checkpoint.
pub const FOLDER: &str = "model";

/// Name of the configuration.
pub const CONFIG_FILE: &str = "config.json";

/// Name of the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The files of a base model beside configuration and weights, which a model trained from it has as well:
/// tokenizer, chat template, generation settings, licence.
pub const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// Writes tensors of 32-bit floats, by name, as one safetensors file; durable when this returns.
/// `values` returns the elements of each tensor, one after the other.
pub fn write_weights<E: From<io::Error>>(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    mut values: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let mut infos = Vec::with_capacity(shapes.len());
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let info =
            TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) };
        infos.push((name.clone(), info));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header).map_err(io::Error::other)?;
    // The elements begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, shape) in shapes {
        let values = values(name)?;
        if values.len() != shape.iter().product::<usize>() {
            let message = format!("{name:?} has {} elements, not those of {shape:?}", values.len());
            return Err(io::Error::other(message).into());
        }
        for value in values {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::peft;

    #[test]
    fn weights_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(WEIGHTS_FILE);
        let shapes = [("b".to_owned(), vec![2, 3]), ("a.weight".to_owned(), vec![1])];
        let values = |name: &str| {
            Ok::<_, io::Error>(match name {
                "b" => vec![1.0, -2.5, 3.0, f32::MIN_POSITIVE, 0.0, f32::MAX],
                _ => vec![7.0],
            })
        };
        write_weights(&path, &shapes, values).expect("it writes");
        let read = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("safetensors");
        for (name, shape) in shapes {
            assert_eq!(read[&name], (shape, values(&name).expect("values")));
        }
        let short = |_: &str| Ok::<_, io::Error>(vec![1.0]);
        let error = write_weights(&path, &[("b".to_owned(), vec![2])], short);
        assert!(error.expect_err("one is missing").to_string().contains("\"b\" has 1 elements"));
    }
}
