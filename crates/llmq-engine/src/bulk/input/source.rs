use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;

use super::error::InputError;
use super::kind::Compression;

const BUFFER: usize = 256 * 1024;
const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputSource {
    /// A file.
    File(PathBuf),
    /// Standard input. A run that reads it resumes only when it is given the whole input again.
    Stdin,
}

impl InputSource {
    /// What a command's argument means: `-` is standard input.
    #[must_use]
    pub fn from_argument(argument: impl Into<PathBuf>) -> Self {
        let path = argument.into();
        if path.as_os_str() == "-" {
            Self::Stdin
        } else {
            Self::File(path)
        }
    }

    /// Whether it can be read more than once: a regular file, and no pipe.
    #[must_use]
    pub fn can_be_read_again(&self) -> bool {
        match self {
            Self::File(path) => path.metadata().is_ok_and(|metadata| metadata.is_file()),
            Self::Stdin => false,
        }
    }

    /// Whether it gives what it holds only once: standard input, or a pipe with a name.
    pub(crate) fn is_stream(&self) -> bool {
        match self {
            Self::File(path) => path
                .metadata()
                .is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()),
            Self::Stdin => true,
        }
    }

    /// The unpacked bytes, without a UTF-8 byte-order mark.
    pub(crate) fn open(&self, compression: Compression) -> Result<Bytes, InputError> {
        let raw: Box<dyn Read + Send> = match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::File(path) => {
                let file = File::open(path).and_then(|file| {
                    // Opening a directory works; only reading it fails, with a message that
                    // does not say why.
                    if file.metadata()?.is_dir() {
                        return Err(io::Error::from(io::ErrorKind::IsADirectory));
                    }
                    Ok(file)
                });
                Box::new(file.map_err(|source| self.open_error(source))?)
            }
        };
        self.unpack(raw, compression)
    }

    fn unpack(
        &self,
        raw: Box<dyn Read + Send>,
        compression: Compression,
    ) -> Result<Bytes, InputError> {
        let mut plain: Box<dyn Read + Send> = match compression {
            Compression::None => raw,
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(
                BufReader::with_capacity(BUFFER, raw),
            )),
            Compression::Zstd => Box::new(
                zstd::stream::read::Decoder::new(raw).map_err(|source| self.open_error(source))?,
            ),
        };
        let mut start = [0; 4];
        let filled = read_up_to(&mut plain, &mut start).map_err(|source| InputError::Read {
            input: self.clone(),
            line: 1,
            source,
        })?;
        let mut start = &start[..filled];
        self.refuse_foreign_start(start, compression)?;
        start = start.strip_prefix(UTF8_MARK).unwrap_or(start);
        let whole = Cursor::new(start.to_vec()).chain(plain);
        Ok(Box::new(BufReader::with_capacity(BUFFER, whole)))
    }

    fn refuse_foreign_start(
        &self,
        start: &[u8],
        compression: Compression,
    ) -> Result<(), InputError> {
        let looks_like = match start {
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "UTF-16 text; convert it to UTF-8",
            [0x1F, 0x8B, ..] if compression == Compression::None => {
                "gzip data; name it .gz or say --input-format FORMAT.gz"
            }
            [0x28, 0xB5, 0x2F, 0xFD] if compression == Compression::None => {
                "Zstandard data; name it .zst or say --input-format FORMAT.zst"
            }
            [b'P', b'K', 3, 4] => "a zip archive or spreadsheet; export it as CSV",
            _ => return Ok(()),
        };
        Err(InputError::Foreign {
            input: self.clone(),
            looks_like,
        })
    }

    fn open_error(&self, source: io::Error) -> InputError {
        InputError::Open {
            input: self.clone(),
            source,
        }
    }
}

/// A reader that can move to another thread.
pub(crate) type Bytes = Box<dyn BufRead + Send>;

impl fmt::Display for InputSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

fn read_up_to(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
