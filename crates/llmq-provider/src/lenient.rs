use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A member of a provider's answer that may be missing, null or of another kind than said;
/// then it is the default, never an error. Providers disagree about much, and a field that
/// nobody needs must not spoil an answer that was paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lenient<T>(pub(crate) T);

/// What can be read from any JSON value. The default for all that is not named.
pub(crate) trait FromAny<'de>: Default {
    fn of_text(_: &str) -> Self {
        Self::default()
    }

    fn of_whole(_: u64) -> Self {
        Self::default()
    }

    fn of_bool(_: bool) -> Self {
        Self::default()
    }

    fn of_object<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }

    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

impl<'de, T: FromAny<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData)).map(Self)
    }
}

struct Any<T>(PhantomData<T>);

impl<'de, T: FromAny<'de>> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<T, E> {
        Ok(T::of_bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<T, E> {
        Ok(T::of_whole(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<T, E> {
        Ok(u64::try_from(value).map_or_else(|_| T::default(), T::of_whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<T, E> {
        // Up to 2^53 a double holds every whole number.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be whole and in range"
        )]
        Ok(if value.fract() == 0.0 && (0.0..9e15).contains(&value) {
            T::of_whole(value as u64)
        } else {
            T::default()
        })
    }

    fn visit_str<E>(self, value: &str) -> Result<T, E> {
        Ok(T::of_text(value))
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<T, A::Error> {
        T::of_array(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::of_object(map)
    }
}

/// A whole number that is not negative.
impl FromAny<'_> for Option<u64> {
    fn of_whole(value: u64) -> Self {
        Some(value)
    }
}

/// A text; a number counts as its digits, since some upstreams send numbers as codes.
impl FromAny<'_> for Option<String> {
    fn of_text(value: &str) -> Self {
        Some(value.to_owned())
    }

    fn of_whole(value: u64) -> Self {
        Some(value.to_string())
    }
}

/// An object, read member by member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de> + Default> FromAny<'de> for Object<T> {
    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Self)
    }
}

/// Whether the member is there and not null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Present(pub(crate) bool);

impl<'de> FromAny<'de> for Present {
    fn of_text(_: &str) -> Self {
        Self(true)
    }

    fn of_object<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self(true))
    }
}

/// The first item of an array that can be read as an object; a bare object counts as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct First<T>(pub(crate) Option<T>);

impl<'de, T: Deserialize<'de> + Default> FromAny<'de> for First<T> {
    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|value| Self(Some(value)))
    }

    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let first = items.next_element::<Lenient<Object<T>>>()?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(first.map(|item| item.0.0)))
    }
}
